"""Workers that are several processes of this machine, each with the environment that torchrun would give it.

torchrun itself is not run: it starts ranks again by its own rules, and the worker is the daemon's to start again. A
socket goes from the leader to every other rank, inherited. What listens is torch.distributed's, on the loopback.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from torchd_server.placement.base import Output, WorkerSpec
from torchd_server.placement.local import LocalPlacement, LocalProcess, connected_sockets

HOST = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"


class TorchrunPlacement:
    """Starts workers that are several processes, each of them as an ordinary one is started."""

    def __init__(self, local: LocalPlacement) -> None:
        self._local = local

    async def launch(self, spec: WorkerSpec, output: Output) -> Sequence[LocalProcess]:
        """Starts the ranks of one worker, all or none; must run in the main thread."""
        size = len(spec.ranks)
        started: list[LocalProcess] = []
        with ExitStack() as ours:  # once the ranks have them, nobody else may hold them open
            pairs = [connected_sockets() for _ in range(size - 1)]
            for end in (end for pair in pairs for end in pair):
                ours.enter_context(end)
            store = ours.enter_context(meeting_place())
            port = store.getsockname()[1]
            of_leader = {"peers": [end for end, _ in pairs], "store": [store]}
            inherited = [of_leader, *({"leader": [end]} for _, end in pairs)]
            try:
                for rank, own in enumerate(spec.ranks):
                    environment = {**spec.environment, **environment_of(rank, size, port), **own}
                    started.append(await self._local.spawn(spec, rank, environment, inherited[rank], output))
            except BaseException:  # nobody else knows of them yet
                for process in started:
                    process.kill()
                    process.close()
                raise
        return started


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """What torch.distributed reads; its own sockets, too, stay on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        # The store is there already: nobody is to open another.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
        "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    }


def meeting_place() -> socket.socket:
    """The socket of the store at which the ranks meet.

    Rank 0 would open it itself on every interface of the machine, and on a port that another process may have taken
    meanwhile; so it is opened here, and rank 0 inherits it.
    """
    place = socket.socket()
    try:
        place.bind((HOST, 0))
        place.listen()
    except BaseException:
        place.close()
        raise
    return place
