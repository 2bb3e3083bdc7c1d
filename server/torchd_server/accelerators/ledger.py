"""Which worker holds which device. A lease belongs to a slot of a WorkerPool and outlives the workers in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchd_server import errors
from torchd_server.accelerators.base import Accelerator, Device, Found
from torchd_server.accelerators.kinds import ACCELERATORS
from torchd_server.settings import ModelSettings

logger = logging.getLogger(__name__)

# Ranks of one model that may share the processor's cores; more only where there is a core for each.
RANKS_ON_ANY_CORE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """What one slot has: its devices, none where its worker runs on any core."""

    model: str
    version: str
    device_type: str
    devices: tuple[Device, ...] = ()
    # Processes that divide the devices among them; each sees all where they may be shared.
    processes: int = 1
    # What hides the devices of other kinds.
    hiding: Mapping[str, str] = field(default_factory=dict)
    # Whose workers should not share its devices; a version that is leaving may have a successor of the same name.
    owner: object = None

    @property
    def gpu_id(self) -> int | None:
        """What a plain worker calls its GPU, which is the first it sees; None without one."""
        return 0 if self.device_type == "gpu" else None

    @property
    def cores(self) -> tuple[int, ...]:
        """CPU cores to run on; empty: any."""
        return tuple(int(device.identity) for device in self.devices) if self.device_type == "cpu" else ()

    def of_process(self, rank: int) -> tuple[Device, ...]:
        """The devices that one of its processes sees."""
        if not self.devices or not ACCELERATORS[self.devices[0].accelerator].exclusive:
            return self.devices
        each = len(self.devices) // self.processes
        return self.devices[rank * each : (rank + 1) * each]

    def environment(self, rank: int) -> dict[str, str]:
        """The variables by which that process sees exactly those."""
        seen = self.of_process(rank)
        return {**self.hiding, **(ACCELERATORS[seen[0].accelerator].environment(seen) if seen else {})}

    def environments(self) -> tuple[dict[str, str], tuple[dict[str, str], ...]]:
        """What all its processes have in common, and what each has beside it."""
        each = [self.environment(rank) for rank in range(self.processes)]
        common = {name: value for name, value in each[0].items() if all(one.get(name) == value for one in each)}
        return common, tuple({name: one[name] for name in one if name not in common} for one in each)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a model asks for: `size` devices for each worker, of `among` if it named some."""

    device_type: str
    size: int
    among: tuple[Device, ...]
    is_named: bool
    processes: int
    is_group: bool
    # Devices left out of `among`, because a process can use a part of a device alone.
    parts: int


class DeviceLedger:
    """The devices of this machine and who holds them."""

    def __init__(self, found: Mapping[str, Found] | None = None) -> None:
        self._found: dict[str, Found] = {}
        self._by_type: dict[str, tuple[Device, ...]] = {}
        # In the order they were lent; a leaving one is free as soon as its process is gone.
        self._leases: dict[Lease, None] = {}
        self._leaving: set[Lease] = set()
        self._quarantined: set[Lease] = set()
        self._given_back = asyncio.Event()
        self.admit(found or {})

    def admit(self, found: Mapping[str, Found]) -> None:
        """These are the devices; to be called before the first is lent."""
        self._found = dict(found)
        self._by_type = {}
        for name, result in found.items():
            if result.devices:
                self._by_type[ACCELERATORS[name].device_type] = result.devices

    @property
    def absences(self) -> dict[str, str]:
        """Why there is nothing of each kind that is not here."""
        return {name: result.absence for name, result in self._found.items() if not result.devices}

    def of_type(self, device_type: str) -> tuple[Device, ...]:
        """The devices of one type, in the order of their index."""
        return self._by_type.get(device_type, ())

    def devices(self) -> list[Device]:
        """Every device there is."""
        return [device for result in self._found.values() for device in result.devices]

    def leases(self) -> list[Lease]:
        """Every lease that was not given back."""
        return list(self._leases)

    def is_quarantined(self, device: Device) -> bool:
        """Whether a process that could not be ended may still hold it."""
        return any(device in lease.devices for lease in self._quarantined)

    def type_of(self, settings: ModelSettings) -> str:
        """Where a model with these settings runs: a wish for GPUs that are not there is one for the processor."""
        wish = settings.device_type
        if wish in ("", "gpu") and self.of_type("gpu"):
            return "gpu"
        if wish == "" and self.of_type("neuron"):
            return "neuron"
        return "neuron" if wish == "neuron" else "cpu"

    def workers_at_start(self, settings: ModelSettings) -> int:
        """One for each GPU or group of them, else for each set of cores that is free; 0 if any core will do."""
        wish = self._wish(settings)
        if not wish.size:
            return 0
        return max(1, len(self._grants(wish, (), len(wish.among))))

    def borrow(
        self, model: str, version: str, settings: ModelSettings, count: int, has: int = 0, owner: object = None
    ) -> list[Lease]:
        """Lends the devices of `count` further workers to one that has some already, all or none: raises
        NotEnoughDevices. Only groups on GPUs get fewer, as many as fit, with a warning, as in TorchServe."""
        wish = self._wish(settings)
        if wish.device_type == "neuron" and not self.of_type("neuron"):
            raise errors.NotEnoughDevices(
                f"model '{model}' asks for {count * wish.size} NeuronCores; this machine has none: "
                f"{self.absences.get('neuron', 'nobody has looked for any')}"
            )
        if wish.size and settings.device_ids and not wish.is_named:
            logger.warning(
                "deviceIds %s are ignored: there are %d",
                *(list(settings.device_ids), len(wish.among) + wish.parts),
                extra={"model": model, "version": version},
            )
        grants = self._grants(wish, self._of(model, version, owner), count)
        if len(grants) < count:
            if not (wish.is_group and wish.device_type == "gpu" and (grants or has)):
                raise errors.NotEnoughDevices(self._refusal(model, wish, has + count, has + len(grants)))
            logger.warning(
                "%d workers instead of %d: each has %d GPUs, and there are %d",
                *(has + len(grants), has + count, wish.size, len(wish.among)),
                extra={"model": model, "version": version},
            )
        hiding = self._hiding(wish.device_type)
        leases = [Lease(model, version, wish.device_type, grant, wish.processes, hiding, owner) for grant in grants]
        self._leases |= dict.fromkeys(leases)
        return leases

    def fits(self, model: str, version: str, settings: ModelSettings, count: int, owner: object = None) -> int:
        """Of so many further workers, how many there are devices for."""
        return len(self._grants(self._wish(settings), self._of(model, version, owner), count))

    def _of(self, *whose: object) -> list[Lease]:
        return [lease for lease in self._leases if (lease.model, lease.version, lease.owner) == whose]

    def leave(self, lease: Lease) -> None:
        """Its slot was dismissed: whoever waits for the devices gets them when its process is gone."""
        if lease in self._leases:
            self._leaving.add(lease)

    def give_back(self, lease: Lease) -> None:
        """The process of its slot is gone, and no other will come."""
        self._leases.pop(lease, None)
        self._leaving.discard(lease)
        self._quarantined.discard(lease)
        self._given_back.set()

    def quarantine(self, lease: Lease) -> None:
        """Its process could not be ended: nobody gets these devices before it has."""
        if lease in self._leases:
            self._quarantined.add(lease)
            self._given_back.set()

    async def wait_free(self, lease: Lease) -> bool:
        """Returns once nobody else holds what cannot be shared: true, or false if that was quarantined."""
        while not any(self.is_quarantined(device) for device in lease.devices):
            if not any(self._is_in_the_way(other, lease) for other in self._leases):
                return True
            self._given_back.clear()
            await self._given_back.wait()
        return False

    def _is_in_the_way(self, other: Lease, lease: Lease) -> bool:
        return other is not lease and any(_is_exclusive(device) and device in lease.devices for device in other.devices)

    def _wish(self, settings: ModelSettings) -> _Wish:
        device_type = self.type_of(settings)
        cores = max(1, settings.cores_per_worker) if device_type == "neuron" else settings.cores_per_worker
        size = settings.devices_per_worker * (1 if device_type == "gpu" else cores)
        devices = self.of_type(device_type)
        # One number that is none, and the whole list counts for nothing, as in TorchServe.
        is_named = bool(settings.device_ids) and all(0 <= number < len(devices) for number in settings.device_ids)
        if is_named:
            devices = tuple(devices[number] for number in dict.fromkeys(settings.device_ids))
        whole = tuple(device for device in devices if size == 1 or not device.is_part)
        parts = len(devices) - len(whole)
        return _Wish(device_type, size, whole, is_named, settings.ranks, bool(settings.parallel_type), parts)

    def _grants(self, wish: _Wish, own: Sequence[Lease], count: int) -> list[tuple[Device, ...]]:
        """What can be lent, worker after worker: aligned blocks of what may be used, the least lent first."""
        if not wish.size:
            return [()] * self._unpinned(wish, own, count)
        starts = range(0, len(wish.among) - wish.size + 1, wish.size)
        blocks = [wish.among[start : start + wish.size] for start in starts]
        blocks = [block for block in blocks if self._can_lend(block, own if wish.is_group else ())]
        burden = {block: self._burden(block) for block in blocks}
        grants: list[tuple[Device, ...]] = []
        while blocks and len(grants) < count:
            block = min(blocks, key=burden.__getitem__)  # of equals the first
            grants.append(block)
            burden[block] = (burden[block][0] + 1, False)
            if wish.is_group or _is_exclusive(block[0]):
                blocks.remove(block)
        return grants

    def _unpinned(self, wish: _Wish, own: Sequence[Lease], count: int) -> int:
        """Of so many workers, how many may run on any core: no device would ever run out."""
        if wish.processes == 1:
            return count
        running = sum(lease.processes for lease in own if lease not in self._leaving)
        return min(count, max(0, self._ranks_on_any_core - running) // wish.processes)

    @property
    def _ranks_on_any_core(self) -> int:
        return max(RANKS_ON_ANY_CORE, len(self.of_type("cpu")))

    def _can_lend(self, block: Sequence[Device], own: Sequence[Lease]) -> bool:
        if any(self.is_quarantined(device) for device in block):
            return False
        # Two groups of one model on the same GPUs would only wait for each other.
        if any(lease not in self._leaving and not set(block).isdisjoint(lease.devices) for lease in own):
            return False
        if not _is_exclusive(block[0]):
            return True
        return _is_side_by_side(block) and not any(
            device in lease.devices for lease in self._leases if lease not in self._leaving for device in block
        )

    def _burden(self, block: Sequence[Device]) -> tuple[int, bool]:
        """How many hold some of it; for what is exclusive, those who are leaving. Then whether it spans two nodes."""
        holders = [
            lease
            for lease in self._leases
            if (_is_exclusive(block[0]) or lease not in self._leaving) and not set(block).isdisjoint(lease.devices)
        ]
        return len(holders), len({device.numa_node for device in block}) > 1

    def _hiding(self, device_type: str) -> dict[str, str]:
        """A worker that was lent no GPU sees none: what its settings say holds for what its handler finds."""
        hidden: dict[str, str] = {}
        for name, result in self._found.items():
            kind = ACCELERATORS[name]
            if result.devices and kind.device_type != device_type:
                hidden |= kind.environment(())
        return hidden

    def _refusal(self, model: str, wish: _Wish, wanted: int, most: int) -> str:
        """One sentence with the numbers: what is asked for, what there is, who has it, what would do."""
        workers = f"{wanted} {_plural('worker', wanted)}"
        at_most = f"scale to at most {most} {_plural('worker', most)}"
        if not wish.size:
            return (
                f"model '{model}' asks for {wanted * wish.processes} processes ({workers} of {wish.processes} ranks "
                f"each); this machine has {len(self.of_type('cpu'))} CPU cores, and at most {self._ranks_on_any_core} "
                f"ranks of a model share them; {at_most if most else 'lower parallelLevel'}"
            )
        kind = ACCELERATORS[wish.among[0].accelerator] if wish.among else _kind_of(wish.device_type)
        in_use = [lease for lease in self._leases if not set(lease.devices).isdisjoint(wish.among)]
        quarantined = {device for device in wish.among if self.is_quarantined(device)}
        held = {device for lease in in_use for device in lease.devices} if kind.exclusive else quarantined
        free = len(set(wish.among) - held)
        asked = wanted * wish.size
        have = f"deviceIds names {len(wish.among)}" if wish.is_named else f"this machine has {len(wish.among)}"
        if wish.parts:
            have += f" beside {wish.parts} MIG {_plural('instance', wish.parts)}, of which a process can use one alone,"
        said = (
            f"model '{model}' asks for {_count(asked, kind)} ({workers} with {wish.size} each); "
            f"{have} and {free} {'is' if free == 1 else 'are'} free"
        )
        if kind.exclusive and (holders := _holders(in_use, wish.among)):
            said += f" ({holders})"
        if quarantined:
            said += f", {len(quarantined)} held by a process that could not be ended"
        if most:
            return f"{said}; {at_most}"
        if wish.size > len(wish.among):
            return f"{said}; lower {'parallelLevel' if wish.is_group else 'coresPerWorker'}"
        if free >= wish.size and kind.exclusive:
            key = "deviceIds" if wish.is_named else "coresPerWorker"
            return f"{said}; what one worker has must be free side by side: change {key}, or scale another model down"
        if free + len(quarantined) == len(wish.among):
            return f"{said}; it may take a restart of the machine"
        return f"{said}; scale another model down first"


def _is_exclusive(device: Device) -> bool:
    return ACCELERATORS[device.accelerator].exclusive


def _is_side_by_side(block: Sequence[Device]) -> bool:
    """Whether cores that work together are neighbours; the processor's are by their place in its own order."""
    if block[0].accelerator == "cpu":
        return True
    numbers = [int(device.identity) for device in block]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _kind_of(device_type: str) -> Accelerator:
    return next(kind for kind in ACCELERATORS.values() if kind.device_type == device_type)


def _count(number: int, kind: Accelerator) -> str:
    return f"{number} {kind.unit if number == 1 else kind.units}"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _holders(leases: Sequence[Lease], among: Sequence[Device]) -> str:
    held: dict[tuple[str, str], int] = {}
    for lease in leases:
        name = (lease.model, lease.version)
        held[name] = held.get(name, 0) + len(set(lease.devices) & set(among))
    if not held:
        return ""
    return errors.some_of(
        [f"model '{model}' version {version} holds {number}" for (model, version), number in held.items()]
    )


class Account:
    """What one version of a model borrows from the ledger."""

    def __init__(self, ledger: DeviceLedger, model: str, version: str, settings: ModelSettings) -> None:
        self._ledger = ledger
        self._model = model
        self._version = version
        self._settings = settings
        self.leave = ledger.leave
        self.give_back = ledger.give_back
        self.quarantine = ledger.quarantine
        self.wait_free = ledger.wait_free

    def borrow(self, count: int, has: int) -> list[Lease]:
        """The devices of `count` further workers; raises NotEnoughDevices."""
        return self._ledger.borrow(self._model, self._version, self._settings, count, has, self)

    def fits(self, count: int) -> int:
        """Of so many further workers, how many there are devices for."""
        return self._ledger.fits(self._model, self._version, self._settings, count, self)

    def borrow_other(self, has: int) -> Lease:
        """The devices of a worker whose own were quarantined; raises NotEnoughDevices."""
        for lease in self.borrow(1, has):
            return lease
        raise errors.NotEnoughDevices(f"model '{self._model}' has no other devices while a process holds its own")
