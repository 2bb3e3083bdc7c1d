"""Where ranks meet: the store of rank 0, whose handler may be in the middle of its imports when the first one comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Rank 0 with another rank that is faster: it comes before, while or after torch is imported here.
PROGRAM = """
import os, resource, socket, sys, time
from threading import Thread
from torchd_workers.rendezvous import MeetingPlace

after, number = float(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
if number:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1,) * 2)
    os.dup2(listener.detach(), number)
    listener = socket.socket(fileno=number)
place = MeetingPlace(listener)
place.open()

def come():
    time.sleep(after)
    socket.create_connection(address).close()

Thread(target=come).start()
import torch.distributed
store = torch.distributed.TCPStore(*address, is_master=False)
store.set("rank", "0")
print(store.get("rank").decode(), flush=True)
os._exit(0)
"""


def meets(after_seconds: float, number: int = 0) -> None:
    command = [sys.executable, "-c", PROGRAM, str(after_seconds), str(number)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == ("0\n", 0), ran.stderr


@pytest.mark.parametrize("after_seconds", [0.0, 0.2, 0.5])
def test_a_rank_that_comes_while_rank_0_imports_torch_waits_for_that(after_seconds: float) -> None:
    """Two threads that import torch at once break the import of both."""
    meets(after_seconds)


def test_the_store_opens_on_a_descriptor_of_any_number() -> None:
    """It has the number it had in the daemon, which may have thousands of clients."""
    meets(0.0, 3000)
