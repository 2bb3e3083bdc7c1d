"""Which worker holds which GPU. A device is lent to the worker that is asked to use it, the least lent one first."""

from __future__ import annotations

from collections.abc import Sequence


class DeviceLedger:
    """The GPUs of this machine and who holds them."""

    def __init__(self, gpus: Sequence[int]) -> None:
        self._gpus = tuple(gpus)
        self._held: dict[object, int] = {}

    @property
    def gpus(self) -> tuple[int, ...]:
        """Every GPU there is."""
        return self._gpus

    def borrow(self, holder: object, among: Sequence[int] = ()) -> int | None:
        """Lends the GPU with the fewest holders, of `among` if given; None where there is none."""
        choice = [gpu for gpu in among if gpu in self._gpus] or self._gpus
        if not choice:
            return None
        holders = list(self._held.values())
        gpu = min(choice, key=holders.count)
        self._held[holder] = gpu
        return gpu

    def give_back(self, holder: object) -> None:
        """The holder's process is gone."""
        self._held.pop(holder, None)
