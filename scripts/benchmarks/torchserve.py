"""TorchServe 0.12 with its best settings: an environment of its own, and the server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers import Running, answers, free_ports, process

PACKAGES = ("torchserve==0.12.0", "torch-model-archiver", "setuptools<81", "psutil", "pyyaml")
READY_WITHIN = 180.0
# What made it fastest when it was looked for: fewer logs, no system metrics, a longer queue, a heap that need not
# grow, as many threads as there are cores, buffers outside the heap.
TUNED = """\
job_queue_size=2000
disable_system_metrics=true
metrics_mode=log
async_logging=true
vmargs=-Xms512m -Xmx1g -XX:+UseParallelGC -XX:+UseStringDeduplication
number_of_netty_threads=2
netty_client_threads=2
prefer_direct_buffer=true
"""
QUIET = """\
<Configuration status="error"><Appenders><Console name="C"><PatternLayout pattern="%m%n"/></Console></Appenders>
<Loggers><Root level="error"><AppenderRef ref="C"/></Root></Loggers></Configuration>
"""


class NoTorchServe(Exception):
    """It cannot be run here; the text says why."""


def environment(folder: Path) -> Path:
    """The virtual environment with TorchServe in `folder`, made where it is missing; torch is our environment's."""
    _check_java()
    venv = folder / "torchserve-venv"
    launcher = venv / "bin" / "torchserve"
    if launcher.exists():
        return venv
    commands = (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoTorchServe(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")
    site = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "zz_torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def _check_java() -> None:
    java = shutil.which("java")
    if java is None:
        raise NoTorchServe("there is no java on PATH; it needs Java 17")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise NoTorchServe(f"it needs Java 17 or newer; {java} says {said.splitlines()[0] if said else 'nothing'}")


@contextmanager
def torchserve(venv: Path, archive: Path, body: bytes, folder: Path) -> Iterator[Running]:
    """The server with this model, once it has answered `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(5)
    inference, management, metrics, grpc_inference, grpc_management = ports
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc_inference}\n"
        f"grpc_management_port={grpc_management}\n"
        "disable_token_auth=true\nmax_request_size=20000000\nmax_response_size=20000000\n"
        f"install_py_dep_per_model=false\n{TUNED}"
    )
    (folder / "log4j2.xml").write_text(QUIET)
    command = [str(venv / "bin" / "torchserve"), "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--model-store", str(archive.parent), "--models", f"{archive.stem}={archive.name}"]
    command += ["--ts-config", str(folder / "config.properties"), "--log-config", str(folder / "log4j2.xml")]
    # It and its workers are to find its own packages, and none of this process'.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {
        "PATH": os.pathsep.join((str(venv / "bin"), os.environ.get("PATH", os.defpath))),
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
        # Its number is written there, and a second one refuses to start.
        "TMPDIR": str(folder),
        "TEMP": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with process(command, inherited | own, folder, folder / "torchserve.log") as started:
        address = f"127.0.0.1:{inference}"
        started.wait_until(lambda: answers(address, f"/predictions/{archive.stem}", body), READY_WITHIN)
        yield Running(started.pid, {"rest": address, "grpc": f"127.0.0.1:{grpc_inference}"})
