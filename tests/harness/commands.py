"""The project's commands as a user has them on the PATH, made from pyproject.toml's table for this checkout."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_FOLDERS = ("server", "workers", "clients", "archiver", "protos")


def find_tool(name: str) -> str | None:
    """Where a command-line tool is: beside this interpreter or on the PATH; None if it is not installed."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def install_commands(folder: Path) -> Path:
    """Writes each entry of [project.scripts] into `folder` the way pip would; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items():
        module, function = target.split(":")
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    return folder


def environment(commands: Path, scratch: Path) -> dict[str, str]:
    """A user's environment: the commands on the PATH, and `scratch` as the place for temporary files."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TS_", "PYTEST_"))}
    return inherited | {
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in PACKAGE_FOLDERS),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
