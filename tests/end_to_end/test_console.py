"""What a stranger sees on the console."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness.commands import environment, install_commands


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    commands = install_commands(tmp_path / "bin")
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        [str(commands / command[0]), *command[1:]],
        cwd=tmp_path,
        env=environment(commands, tmp_path / "tmp") | {"XDG_RUNTIME_DIR": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_torchd_help_tells_what_to_do_next(tmp_path: Path) -> None:
    shown = run(tmp_path, "torchd", "--help")
    assert shown.returncode == 0, shown.stderr
    for word in ("serve", "archive", "run"):
        assert word in shown.stdout
    assert "torchd serve" in shown.stdout


def test_torchd_alone_is_help_and_not_a_traceback(tmp_path: Path) -> None:
    shown = run(tmp_path, "torchd")
    assert shown.returncode in (0, 2)
    assert "serve" in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "command",
    [("torchd", "serve"), ("torchd", "archive"), ("torchd", "run"), ("torchserve",), ("torch-model-archiver",)],
)
def test_every_command_explains_itself(tmp_path: Path, command: tuple[str, ...]) -> None:
    shown = run(tmp_path, *command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--" in shown.stdout


def test_the_help_of_serve_names_the_ports(tmp_path: Path) -> None:
    shown = run(tmp_path, "torchd", "serve", "--help").stdout
    for port in ("7070", "7071", "8080", "8081", "8082"):
        assert port in shown


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("torchd", "srve"), "srve"),
        (("torchd", "serve", "--no-such-flag"), "--no-such-flag"),
        (("torchd", "serve", "--inference-port", "many"), "many"),
        (("torchd", "serve", "--inference-port", "70000"), "70000"),
        (("torchd", "serve", "--model-store", "no/such/store"), "no/such/store"),
        (("torchd", "serve", "--config", "no-such-file"), "no-such-file"),
        (("torchd", "serve", "--host", "0.0.0.0"), "0.0.0.0"),
        (("torchserve", "--start", "--foreground", "--ts-config", "no-such-file"), "no-such-file"),
    ],
)
def test_a_mistake_is_named_and_nothing_starts(tmp_path: Path, command: tuple[str, ...], named: str) -> None:
    shown = run(tmp_path, *command)
    assert shown.returncode not in (0, 98)
    told = shown.stderr + shown.stdout
    assert named in told
    assert "Traceback" not in told
    assert "Model server started" not in told
