"""How a worker's processes come to be, and how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchd_server.placement.base import Output, WorkerProcess, WorkerSpec
from torchd_server.placement.local import LocalPlacement
from torchd_server.placement.torchrun import TorchrunPlacement


class ThisMachine:
    """Starts every worker here, each in the way it needs."""

    def __init__(self, environment: Mapping[str, str], allowed: str | None, hidden: str = "") -> None:
        """`allowed` and `hidden` are expressions that the names of variables match in full; None allows all."""
        self._alone = LocalPlacement(environment, allowed, hidden)
        self._together = TorchrunPlacement(self._alone)

    async def launch(self, spec: WorkerSpec, output: Output) -> Sequence[WorkerProcess]:
        """Starts the processes of a worker; must run in the main thread."""
        placement = self._together if len(spec.ranks) > 1 else self._alone
        return await placement.launch(spec, output)
