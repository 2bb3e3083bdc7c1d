"""The process of the daemon before it serves."""

from __future__ import annotations

import subprocess
import sys

RUN = """
import ctypes
from torchd_server import daemon, start

async def serve(settings, ready):
    print(ctypes.CDLL(None).prctl(3))  # PR_GET_DUMPABLE

daemon.serve = serve
start._run(None)
"""


def test_nobody_reads_the_daemons_memory_or_finds_it_in_a_core_dump() -> None:
    """E16, S25: its workers run what archives bring, as the same user."""
    run = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr
