"""`torchserve --start` and `--stop` as scripts use them: background, pid file, console (reference section 3.3)."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.commands import environment, install_commands
from harness.daemon import CONFIG, READY_LINE, free_ports

from torchd_archiver.packing import PackRequest, pack

ECHO = Path(__file__).parents[1] / "models" / "echo" / "handler.py"


class Shell:
    """A folder with a model store and a config.properties, and the commands a user has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        self.pid_file = self.scratch / ".model_server.pid"
        (folder / "model_store").mkdir()
        pack(PackRequest("echo", "1.0", str(ECHO), export_path=folder / "model_store"))
        self.ports = free_ports(5)
        (folder / "config.properties").write_text(CONFIG.format(*self.ports) + "default_workers_per_model=1\n")
        self.commands = install_commands(folder / "bin")
        self.variables = environment(self.commands, self.scratch) | {"XDG_RUNTIME_DIR": str(folder)}

    def torchserve(self, *arguments: str, console: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `torchserve`; with `console` its output goes there, and a server's that it leaves behind."""
        command = [str(self.commands / "torchserve"), *arguments]
        if console is None:
            return subprocess.run(
                command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=90, check=False
            )
        with console.open("w") as file:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=self.variables,
                stdout=file,
                stderr=file,
                text=True,
                timeout=90,
                check=False,
            )

    def start(self, *arguments: str) -> Path:
        """Starts in the background; returns the file with the console's lines."""
        console = self.folder / "console.log"
        done = self.torchserve("--start", "--model-store", "model_store", "--dt", *arguments, console=console)
        assert done.returncode == 0, console.read_text()
        return console

    def get(self, path: str, port: int = 0) -> bytes:
        """One GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=30) as answer:
            body: bytes = answer.read()
            return body


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.torchserve("--stop", "--foreground")


def test_start_returns_when_it_can_be_called_and_stop_when_it_is_gone(shell: Shell) -> None:
    console = shell.start("--models", "echo.mar")
    assert json.loads(shell.get("/models", 1))["models"] == [{"modelName": "echo", "modelUrl": "echo.mar"}]
    server = psutil.Process(int(shell.pid_file.read_text()))
    assert shell.pid_file.stat().st_mode & 0o777 == 0o600
    assert READY_LINE in console.read_text().splitlines()
    (shell.folder / "key_file.json").write_text("{}")
    stopped = shell.torchserve("--stop")
    assert (stopped.returncode, stopped.stdout) == (0, "TorchServe has stopped.\n")
    assert not server.is_running()
    assert not shell.pid_file.exists()
    assert not (shell.folder / "key_file.json").exists()
    again = shell.torchserve("--stop")
    assert (again.returncode, again.stdout) == (0, "TorchServe is not currently running.\n")


def test_neither_start_nor_stop_is_a_start(shell: Shell) -> None:
    console = shell.folder / "console.log"
    assert shell.torchserve("--model-store", "model_store", "--ncs", "--dt", console=console).returncode == 0
    assert shell.get("/ping")


def test_a_second_start_is_told_and_leaves(shell: Shell) -> None:
    shell.start("--ncs")
    second = shell.torchserve("--start", "--model-store", "model_store")
    assert second.returncode == 1
    assert second.stdout == "TorchServe is already running, please use torchserve --stop to stop TorchServe.\n"
    assert shell.get("/ping")


def test_the_pid_file_of_a_killed_server_is_no_hindrance(shell: Shell) -> None:
    shell.start("--ncs")
    server = psutil.Process(int(shell.pid_file.read_text()))
    server.kill()
    psutil.wait_procs([server], timeout=30)
    assert shell.pid_file.exists()
    shell.start("--ncs")
    assert shell.get("/ping")


def test_a_start_that_fails_says_why_and_is_no_success(shell: Shell) -> None:
    (shell.folder / "config.properties").write_text("job_queue_size=none\n")
    console = shell.folder / "console.log"
    done = shell.torchserve("--start", "--model-store", "model_store", console=console)
    assert done.returncode == 1
    assert "config.properties:1: job_queue_size: 'none' will not do" in console.read_text()
    assert not shell.pid_file.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--start",), "Missing mandatory parameter --model-store"),
        (("--start", "--model-store", "nowhere"), "--model-store directory not found: nowhere"),
        (("--start", "--model-store", "model_store", "--ts-config", "none"), "--ts-config file not found: none"),
    ],
)
def test_what_is_missing_is_said_on_the_console_with_status_1(
    shell: Shell, arguments: tuple[str, ...], told: str
) -> None:
    console = shell.folder / "console.log"
    assert shell.torchserve(*arguments, console=console).returncode == 1
    assert told in console.read_text().splitlines()


def test_version_is_torchserves_line(shell: Shell) -> None:
    assert shell.torchserve("--version").stdout.startswith("TorchServe Version is 0.12.0")


def test_what_was_registered_comes_back_after_a_stop_and_after_a_kill(shell: Shell) -> None:
    """Section 3.4, D07: the second start reads no --models; the snapshot hides ./config.properties, and says so."""
    shell.start("--enable-model-api")
    register = f"http://127.0.0.1:{shell.ports[1]}/models?url=echo.mar&model_name=one&initial_workers=1&batch_size=3"
    with urllib.request.urlopen(urllib.request.Request(register, method="POST"), timeout=60) as answer:
        assert answer.status == 200
    for end in ("stop", "kill"):
        if end == "stop":
            shell.torchserve("--stop", "--foreground")
        else:
            server = psutil.Process(int(shell.pid_file.read_text()))
            server.kill()
            psutil.wait_procs([server], timeout=30)
        console = shell.start().read_text()
        assert "it hides" in console
        (model,) = json.loads(shell.get("/models/one", 1))
        assert (model["batchSize"], model["minWorkers"], model["loadedAtStartup"]) == (3, 1, False)
    kept = sorted(path.name.rpartition("-")[2] for path in (shell.folder / "logs" / "config").glob("*.cfg"))
    assert kept.count("startup.cfg") == 3
    assert kept.count("shutdown.cfg") == 1


def test_without_snapshots_none_are_written_or_read(shell: Shell) -> None:
    shell.start("--ncs", "--models", "echo.mar")
    assert [model["modelName"] for model in json.loads(shell.get("/models", 1))["models"]] == ["echo"]
    shell.torchserve("--stop")
    assert not list((shell.folder / "logs").glob("config/*"))
