"""What a process tree used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torchd_clients.bench.measurement import Usage
from torchd_clients.bench.usage import UsageMeter

# A child burns CPU time and ends, which its parent says; the parent then holds 50 MiB until its input ends.
BURNS = """
import subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.5: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
held = b"x" * (50 << 20)
print("done", flush=True)
sys.stdin.read()
"""


def test_time_of_children_counts_once_they_have_ended_and_memory_of_those_there_are() -> None:
    process = subprocess.Popen([sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        meter = UsageMeter(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        used = meter.read()
    assert 0.5 <= used.cpu_seconds < 2.0
    assert 50 < used.memory_mib < 90
    assert used.processes == 1


def test_of_a_process_that_is_gone_nothing_is_said() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    meter = UsageMeter(process.pid)
    process.wait()
    assert meter.read() == Usage(0.0, 0, 0)
    assert UsageMeter(process.pid).read().memory_mib == pytest.approx(0.0)
