"""The files an operator installs: the image's entry point, the systemd units."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness.commands import ROOT, environment, find_tool, install_commands
from harness.daemon import Daemon, free_ports

DEPLOY = ROOT / "scripts" / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def test_a_service_manager_hears_that_the_daemon_is_ready_and_that_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        daemon = Daemon(tmp_path / "daemon")
        daemon.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with daemon:
            assert manager.recv(100) == b"READY=1"
            daemon.signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"


def test_the_images_entry_point_serves_with_its_configuration_and_drains_on_sigterm(tmp_path: Path) -> None:
    """`docker run IMAGE` and `docker stop`, without the container: the script, its file, the command."""
    home = tmp_path / "model-server"
    for folder in ("model-store", "wf-store", "tmp"):
        (home / folder).mkdir(parents=True)
    shipped = (DEPLOY / "docker" / "config.properties").read_text().replace("/home/model-server", str(home))
    ports = iter(free_ports(3))
    config = re.sub(r"(?<=http://0\.0\.0\.0:)\d+", lambda _: str(next(ports)), shipped)
    grpc_ports = free_ports(2)
    config += f"grpc_inference_port={grpc_ports[0]}\ngrpc_management_port={grpc_ports[1]}\n"
    (home / "config.properties").write_text(config)
    port = int(re.findall(r"inference_address=http://0\.0\.0\.0:(\d+)", config)[0])
    commands = install_commands(tmp_path / "bin")
    process = subprocess.Popen(
        [DEPLOY / "docker" / "dockerd-entrypoint.sh", "serve", "--ncs"],
        env=environment(commands, home / "tmp") | {"MODEL_SERVER_HOME": str(home), "XDG_RUNTIME_DIR": str(tmp_path)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        said = ""
        for line in process.stdout:
            said += line
            if "Model server started." in line:
                break
        assert process.poll() is None, said
        with urlopen(f"http://127.0.0.1:{port}/ping") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        said += process.stdout.read()
    assert process.wait(30) == 0, said


def test_the_entry_point_runs_other_commands_as_they_are() -> None:
    entry = DEPLOY / "docker" / "dockerd-entrypoint.sh"
    assert subprocess.run([entry, "echo", "two words"], capture_output=True, text=True).stdout == "two words\n"


def test_the_image_has_torchserves_user_ports_and_folders() -> None:
    """No container engine builds it here; what manifests rely on is read from the file."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert "EXPOSE 8080 8081 8082 7070 7071" in text
    assert "USER model-server" in text
    assert 'ENTRYPOINT ["/usr/local/bin/dockerd-entrypoint.sh"]' in text
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", text, re.MULTILINE)
    assert all((ROOT / name).exists() for name in copied if name.startswith("scripts/"))


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    here.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    checked = subprocess.run([find_tool("systemd-analyze") or "", "verify", here], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
