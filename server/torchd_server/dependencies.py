"""Installing what an archive's requirements file asks for: by pip in a process of its own, for that model alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchd_server import errors
from torchd_server.environment import passed_on

KEPT_LINES = 20
REQUIREMENTS_BYTES = 256 * 1024
# An option of pip, a URL, a path: what only looks like a requirement. Continuation lines hold the hashes.
_NOT_HASHED = re.compile(r"^\s*(?!--hash=)(-|\.|/)|://|\s@\s")
_SETTINGS_OF_PIP = r"(?i:PIP_.*|(https?|no|all)_proxy)"
# Runs a command that dies with this process, whatever kills it: nobody would wait for its end, or take its time.
_LEASH = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Dependencies:
    """Runs pip. `only_hashed_wheels` takes nothing but wheels whose hashes stand in the requirements file."""

    def __init__(
        self,
        environment: Mapping[str, str],
        allowed: str | None,
        hidden: str = "",
        *,
        only_hashed_wheels: bool,
        timeout: float = 900.0,
    ) -> None:
        # What packages run when they are built sees what their handlers will see, and pip's own settings.
        seen = passed_on(environment, None if allowed is None else f"{allowed}|{_SETTINGS_OF_PIP}", hidden)
        self._environment = {name: value for name, value in seen.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self._only_hashed_wheels = only_hashed_wheels
        self._timeout = timeout

    async def into_folder(self, model: str, requirements: Path, folder: Path) -> None:
        """Installs into the model's own folder; raises DependenciesFailed."""
        self._check(model, requirements)
        flags = ["-U", "-t", str(folder)]
        await self._run(model, [*_PIP, "install", *self._flags(), *flags, "-r", str(requirements)], folder)

    async def into_venv(self, model: str, requirements: Path | None, venv: Path) -> Path:
        """Makes a virtual environment on top of this one, installs into it and answers its Python."""
        if requirements is not None:
            self._check(model, requirements)
        await self._run(model, [sys.executable, "-P", "-m", "venv", "--without-pip", str(venv)], venv.parent)
        python = venv / "bin" / "python"
        _inherit(venv)
        if requirements is not None:
            flags = ["-U", "--upgrade-strategy", "only-if-needed"]
            pip = [*_PIP, "--python", str(python), "install", *self._flags()]
            await self._run(model, [*pip, *flags, "-r", str(requirements)], requirements.parent)
        return python

    def _flags(self) -> list[str]:
        flags = ["--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar", "off"]
        return [*flags, "--require-hashes", "--only-binary=:all:", "--no-deps"] if self._only_hashed_wheels else flags

    def _check(self, model: str, requirements: Path) -> None:
        """Refuses, where only hashed wheels will do, a file that could send pip elsewhere."""
        try:
            with requirements.open("rb") as file:
                text = file.read(REQUIREMENTS_BYTES + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.DependenciesFailed(model, f"{requirements.name} cannot be read: {error}") from error
        if len(text) > REQUIREMENTS_BYTES:
            raise errors.DependenciesFailed(model, f"{requirements.name} has more than {REQUIREMENTS_BYTES} bytes")
        strange = next((line for line in text.splitlines() if _NOT_HASHED.search(line.split(" #")[0])), None)
        if self._only_hashed_wheels and strange is not None:
            raise errors.DependenciesFailed(
                model, f"{requirements.name}: {strange.strip()[:100]!r} is more than a name, a version and hashes"
            )

    async def _run(self, model: str, command: Sequence[str], folder: Path) -> None:
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())),
            *command,
            cwd=folder,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout):
                await _read(process.stdout, lines)
                code = await process.wait()
        except TimeoutError as error:
            raise errors.DependenciesFailed(model, f"it took more than {self._timeout:g} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind, and itself if it still runs
            await process.wait()
        if code:
            raise errors.DependenciesFailed(model, "\n".join(lines) or f"pip exited with status {code}")


_PIP = [sys.executable, "-P", "-m", "pip"]


async def _read(stream: asyncio.StreamReader | None, lines: deque[str]) -> None:
    rest = b""
    while stream is not None and (piece := await stream.read(1 << 16)):
        *whole, rest = (rest + piece).split(b"\n")
        lines.extend(line.decode("utf-8", "replace").rstrip()[:500] for line in whole if line.strip())
        rest = rest[-4096:]
    if rest.strip():
        lines.append(rest.decode("utf-8", "replace").strip()[:500])


def _inherit(venv: Path) -> None:
    """Lets the environment see what the daemon sees, after its own packages: torch, and the worker itself.

    `--system-site-packages` would not do: it means those of the base interpreter, and the daemon lives in an
    environment of its own or comes from PYTHONPATH.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    own |= {os.path.join(path, "lib-dynload") for path in own}
    wanted = [*sys.path, *site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    entries = dict.fromkeys(os.path.abspath(path) for path in wanted if path and os.path.isdir(path))
    text = "".join(f"{path}\n" for path in entries if path not in own)
    (venv / "lib" / version / "site-packages" / "inherited.pth").write_text(text)
