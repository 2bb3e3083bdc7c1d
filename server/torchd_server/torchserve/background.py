"""Starting the server in the background and stopping it: what `torchserve --start` and `--stop` do themselves.

The server is a new process of its own session, started before anything of gRPC or asyncio exists here. The command
returns when the server listens, so that the next line of a script can call it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from torchd_server.torchserve.pid_file import PidFile

# Archives are unpacked before the server is ready; after this the command leaves it to itself.
START_SECONDS = 120.0
STOP_SECONDS = 10.0
STOP_FOREGROUND_SECONDS = 60.0
LISTENS = b"listens\n"


def start(argv: Sequence[str], patience: float = START_SECONDS) -> int:
    """Starts `torchserve` with these flags in the background; returns the exit status for the command.

    Standard output and error stay the caller's, since scripts read log lines and metrics there.
    """
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as news:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "torchd_server",
                    "torchserve",
                    *argv,
                    "--foreground",
                    f"--ready-fd={theirs}",
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            return _await(process, news.fileno(), patience)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            return 130


def _await(process: subprocess.Popen[bytes], news: int, patience: float) -> int:
    readable, _, _ = select.select([news], [], [], patience)
    if not readable:
        print(f"TorchServe (pid {process.pid}) still starts after {patience:g} s; see its log.")
    elif os.read(news, len(LISTENS)) != LISTENS:  # it has said why
        process.wait()
        return 1
    process.returncode = 0  # it lives on: nobody here waits for it
    return 0


def tell(ready_fd: int | None) -> None:
    """Tells the command that started this server that it listens."""
    if ready_fd is None:
        return
    try:
        os.write(ready_fd, LISTENS)
        os.close(ready_fd)
    except OSError:  # nobody waits any more
        return


def stop(pid_file: PidFile, wait_to_the_end: bool, cwd: Path) -> None:
    """Stops the running server and says so, in TorchServe's words."""
    process = pid_file.running()
    if process is None:
        print("TorchServe is not currently running.")
        return
    try:
        process.terminate()
        (cwd / "key_file.json").unlink(missing_ok=True)
        patience = STOP_FOREGROUND_SECONDS if wait_to_the_end else STOP_SECONDS
        gone, _ = psutil.wait_procs([process], timeout=patience)
        if gone:
            print("TorchServe has stopped.")
        elif wait_to_the_end:
            print("Stopping TorchServe took too long.")
        else:
            print(f"TorchServe (pid {process.pid}) is stopping: the requests it accepted finish first.")
    except psutil.NoSuchProcess:
        print("TorchServe already stopped.")
    except (psutil.Error, OSError) as error:
        print(f"TorchServe (pid {process.pid}) cannot be stopped: {error}")
        return
    pid_file.remove(process.pid)
