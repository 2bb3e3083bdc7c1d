"""Who gets which device: seed 002's placements, exclusive cores, refusals with their numbers, what comes back when."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fakes import in_loop, turns
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from torchd_server import errors
from torchd_server.accelerators.base import Device, Found
from torchd_server.accelerators.ledger import Account, DeviceLedger, Lease
from torchd_server.settings import ModelSettings


def found(kind: str, count: int, nodes: int = 1) -> Found:
    return Found(tuple(Device(kind, i, str(i), kind, numa_node=i * nodes // count) for i in range(count)))


def ledger(**counts: int) -> DeviceLedger:
    """Machines by kind: cuda=8, neuron=24, cpu=16."""
    return DeviceLedger(
        {kind: found(kind, count) if count else Found(absence="none") for kind, count in counts.items()}
    )


def lend(books: DeviceLedger, count: int, model: str = "bert", has: int = 0, **settings: Any) -> list[Lease]:
    return books.borrow(model, "1.0", ModelSettings(**settings), count, has)


def indices(leases: list[Lease]) -> list[list[int]]:
    return [[device.index for device in lease.devices] for lease in leases]


@pytest.mark.parametrize(
    ("gpus", "settings", "workers", "placed"),
    [
        (8, {"parallel_type": "pp", "parallel_level": 4}, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, {"parallel_type": "tp", "parallel_level": 2, "device_ids": (2, 3, 4, 5)}, 2, [[2, 3], [4, 5]]),
        (8, {"parallel_type": "custom", "parallel_level": 4}, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, {"parallel_type": "pptp", "parallel_level": 3}, 2, [[0, 1, 2], [3, 4, 5]]),
        (4, {}, 6, [[0], [1], [2], [3], [0], [1]]),
        (8, {"device_ids": (5, 2)}, 3, [[5], [2], [5]]),
        (4, {"device_ids": (0, 9)}, 2, [[0], [1]]),  # one out of range: the whole list is dropped, as in TorchServe
        (4, {"device_type": "cpu"}, 2, [[], []]),
        (0, {"device_type": "gpu"}, 2, [[], []]),  # as in TorchServe
        (0, {"parallel_type": "tp", "parallel_level": 2, "device_type": "gpu"}, 1, [[]]),
    ],
)
def test_gpus_are_placed_as_in_torchserve(
    gpus: int, settings: dict[str, Any], workers: int, placed: list[list[int]]
) -> None:
    """Seed 002 and torchserve.md 7.3; a device with the fewest holders comes first."""
    assert indices(lend(ledger(cuda=gpus), workers, **settings)) == placed


def test_more_groups_than_fit_are_capped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """As TorchServe: the pool then wants two."""
    books = ledger(cuda=8)
    group = {"parallel_type": "tp", "parallel_level": 4}
    assert len(lend(books, 3, **group)) == 2
    assert "2 workers instead of 3: each has 4 GPUs, and there are 8" in caplog.text
    assert lend(books, 1, has=2, **group) == []
    assert indices(lend(books, 1, "other", **group)) == [[0, 1, 2, 3]]  # another model shares them


def test_a_group_larger_than_the_machine_is_refused() -> None:
    """torchserve.md 7.3: 500 there."""
    sentence = (
        "model 'bert' asks for 4 GPUs (1 worker with 4 each); this machine has 2 and 2 are free; lower parallelLevel"
    )
    with pytest.raises(errors.NotEnoughDevices, match=re.escape(sentence)):
        lend(ledger(cuda=2), 1, parallel_type="tp", parallel_level=4)


@pytest.mark.parametrize(
    ("has", "count", "level", "sentence"),
    [
        (0, 64, 1024, "asks for 65536 processes (64 workers of 1024 ranks each); lower parallelLevel"),
        (0, 1, 65, "asks for 65 processes (1 worker of 65 ranks each); lower parallelLevel"),
        (7, 2, 8, "asks for 72 processes (9 workers of 8 ranks each); scale to at most 8 workers"),
    ],
)
def test_an_archive_cannot_ask_for_any_number_of_processes(has: int, count: int, level: int, sentence: str) -> None:
    """A rank without a device runs on any core, and there is nothing to run out of but the machine."""
    books = ledger(cpu=16)
    wish = {"parallel_type": "tp", "parallel_level": level}
    lend(books, has, **wish)
    with pytest.raises(errors.NotEnoughDevices) as refused:
        lend(books, count, has=has, **wish)
    said, _, way_out = sentence.partition("; ")
    assert str(refused.value) == (
        f"model 'bert' {said}; this machine has 16 CPU cores, and at most 64 ranks of a model share them; {way_out}"
    )
    assert len(books.leases()) == has
    assert books.fits("bert", "1.0", ModelSettings(**wish), count) == 64 // level - has


def test_a_machine_with_many_cores_has_a_rank_for_each() -> None:
    books = ledger(cpu=128)
    assert len(lend(books, 2, parallel_type="tp", parallel_level=64)) == 2
    with pytest.raises(errors.NotEnoughDevices, match="at most 128 ranks"):
        lend(books, 1, parallel_type="tp", parallel_level=64, has=2)
    for lease in books.leases():
        books.leave(lease)
    assert len(lend(books, 1, parallel_type="tp", parallel_level=64)) == 1


def mig_machine(whole: int) -> DeviceLedger:
    """GPU 0 in three instances, and so many whole ones after it."""
    parts = [Device("cuda", i, f"MIG-{i}", is_part=True) for i in range(3)]
    return DeviceLedger({"cuda": Found((*parts, *(Device("cuda", 3 + i, str(1 + i)) for i in range(whole))))})


@pytest.mark.parametrize("kind", ["tp", "pp", "pptp", "custom"])
@pytest.mark.parametrize(
    ("whole", "settings", "have"),
    [
        (0, {}, "this machine has 0 beside 3 MIG instances"),
        (1, {}, "this machine has 1 beside 3 MIG instances"),
        (2, {"device_ids": (0, 3)}, "deviceIds names 1 beside 1 MIG instance"),
    ],
)
def test_a_worker_of_several_gpus_gets_no_mig_instance(
    kind: str, whole: int, settings: dict[str, Any], have: str
) -> None:
    """A CUDA process sees one instance, and then no other GPU: NVIDIA's guide to MIG, "CUDA Device Enumeration"."""
    books = mig_machine(whole)
    with pytest.raises(errors.NotEnoughDevices) as refused:
        lend(books, 1, parallel_type=kind, parallel_level=2, **settings)
    said = f"{have}, of which a process can use one alone, and {min(whole, 1)} {'is' if whole else 'are'} free"
    assert str(refused.value) == (f"model 'bert' asks for 2 GPUs (1 worker with 2 each); {said}; lower parallelLevel")
    assert not books.leases()


def test_beside_mig_instances_whole_gpus_are_lent_to_groups() -> None:
    books = mig_machine(4)
    assert indices(lend(books, 2, parallel_type="tp", parallel_level=2)) == [[3, 4], [5, 6]]
    assert indices(lend(books, 3, "plain")) == [[0], [1], [2]]
    assert indices(lend(books, 1, "one", parallel_type="tp", parallel_level=1, device_ids=(1,))) == [[1]]


def test_what_is_out_of_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    lend(ledger(cuda=4), 1, device_ids=(1, 4))
    assert "deviceIds [1, 4] are ignored: there are 4" in caplog.text


def test_each_neuron_core_has_one_worker() -> None:
    """Seed 001: workers = cores."""
    books = ledger(neuron=24)
    leases = lend(books, 24)
    assert indices(leases) == [[core] for core in range(24)]
    assert [lease.environment(0)["NEURON_RT_VISIBLE_CORES"] for lease in leases] == [str(core) for core in range(24)]
    assert {lease.environment(0)["NEURON_RT_NUM_CORES"] for lease in leases} == {"1"}


@pytest.mark.parametrize(
    ("settings", "has", "count", "sentence"),
    [
        (
            {},
            0,
            25,
            "model 'bert' asks for 25 NeuronCores (25 workers with 1 each); this machine has 24 and 24 are free; "
            "scale to at most 24 workers",
        ),
        (
            {},
            20,
            5,
            "model 'bert' asks for 25 NeuronCores (25 workers with 1 each); this machine has 24 and 4 are free "
            "(model 'bert' version 1.0 holds 20); scale to at most 24 workers",
        ),
        (
            {"cores_per_worker": 4},
            0,
            7,
            "model 'bert' asks for 28 NeuronCores (7 workers with 4 each); this machine has 24 and 24 are free; "
            "scale to at most 6 workers",
        ),
        (
            {"cores_per_worker": 32},
            0,
            1,
            "model 'bert' asks for 32 NeuronCores (1 worker with 32 each); this machine has 24 and 24 are free; "
            "lower coresPerWorker",
        ),
        (
            {"device_ids": (0, 1)},
            0,
            3,
            "model 'bert' asks for 3 NeuronCores (3 workers with 1 each); deviceIds names 2 and 2 are free; "
            "scale to at most 2 workers",
        ),
    ],
)
def test_too_many_neuron_cores_are_refused_with_the_numbers(
    settings: dict[str, Any], has: int, count: int, sentence: str
) -> None:
    """Seed 001's warning, said before anything has started."""
    books = ledger(neuron=24)
    lend(books, has, **settings)
    before = books.leases()
    with pytest.raises(errors.NotEnoughDevices) as refused:
        lend(books, count, has=has, **settings)
    assert str(refused.value) == sentence
    assert books.leases() == before


def test_a_refusal_names_who_holds_the_rest() -> None:
    books = ledger(neuron=4)
    lend(books, 4, "gpt")
    with pytest.raises(errors.NotEnoughDevices) as refused:
        lend(books, 1)
    assert str(refused.value) == (
        "model 'bert' asks for 1 NeuronCore (1 worker with 1 each); this machine has 4 and 0 are free "
        "(model 'gpt' version 1.0 holds 4); scale another model down first"
    )


def test_neuron_without_neuron_cores_is_refused_and_says_what_was_looked_for() -> None:
    with pytest.raises(errors.NotEnoughDevices, match="2 NeuronCores; this machine has none: none"):
        lend(ledger(neuron=0, cpu=2), 2, device_type="neuron")


def test_workers_of_several_cores_have_aligned_ranges_side_by_side() -> None:
    books = ledger(neuron=24)
    lend(books, 1, "small", cores_per_worker=1)
    leases = lend(books, 5, cores_per_worker=4)
    assert indices(leases) == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]]
    assert leases[0].environment(0)["NEURON_RT_VISIBLE_CORES"] == "4-7"
    assert indices(lend(books, 3, "small", has=1)) == [[1], [2], [3]]


def test_ranges_have_no_gap_where_the_operator_left_one() -> None:
    cores = [0, 1, 3, 4, 5, 6]
    books = DeviceLedger({"neuron": Found(tuple(Device("neuron", i, str(core)) for i, core in enumerate(cores)))})
    leases = lend(books, 2, cores_per_worker=2)
    assert [lease.environment(0)["NEURON_RT_VISIBLE_CORES"] for lease in leases] == ["0-1", "3-4"]
    assert [device.identity for device in lend(books, 1, "m", cores_per_worker=2)[0].devices] == ["5", "6"]


def test_each_rank_sees_its_own_cores_and_every_gpu_of_the_group() -> None:
    [cores] = lend(ledger(neuron=24), 1, parallel_type="tp", parallel_level=2, cores_per_worker=4)
    common, ranks = cores.environments()
    assert [rank["NEURON_RT_VISIBLE_CORES"] for rank in ranks] == ["0-3", "4-7"]
    assert common == {"NEURON_RT_NUM_CORES": "4"}
    [gpus] = lend(ledger(cuda=4), 1, parallel_type="tp", parallel_level=2)
    common, ranks = gpus.environments()
    assert (common["CUDA_VISIBLE_DEVICES"], ranks) == ("0,1", ({}, {}))
    [custom] = lend(ledger(neuron=24), 1, parallel_type="custom", parallel_level=3)
    assert custom.environment(0)["NEURON_RT_VISIBLE_CORES"] == "0-2"


def test_a_plain_worker_calls_its_only_gpu_0() -> None:
    first, second = lend(ledger(cuda=2, cpu=4), 2)
    assert (first.gpu_id, second.gpu_id) == (0, 0)
    assert second.environment(0) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_a_worker_without_a_gpu_sees_none() -> None:
    [lease] = lend(ledger(cuda=2, cpu=4), 1, device_type="cpu")
    assert (lease.gpu_id, lease.cores) == (None, ())
    assert lease.environment(0)["CUDA_VISIBLE_DEVICES"] == ""
    [lease] = lend(ledger(cuda=0, cpu=4), 1)
    assert lease.environment(0) == {}


def test_pinned_cores_belong_to_one_worker() -> None:
    books = ledger(cpu=8)
    assert [lease.cores for lease in lend(books, 2, cores_per_worker=3)] == [(0, 1, 2), (3, 4, 5)]
    with pytest.raises(errors.NotEnoughDevices, match="asks for 3 CPU cores"):
        lend(books, 1, "other", cores_per_worker=3)
    assert [lease.cores for lease in lend(books, 2, "any")] == [(), ()]  # who pins none may run anywhere


def test_a_worker_spans_two_nodes_only_if_it_must() -> None:
    books = DeviceLedger({"cpu": found("cpu", 8, nodes=2)})
    assert [lease.cores for lease in lend(books, 2, cores_per_worker=3)] == [(0, 1, 2), (3, 4, 5)]
    books = DeviceLedger({"cpu": found("cpu", 9, nodes=3)})  # 0-2, 3-5, 6-8
    assert [lease.cores for lease in lend(books, 3, cores_per_worker=2)] == [(0, 1), (4, 5), (6, 7)]


@pytest.mark.parametrize(
    ("counts", "wish", "device_type"),
    [
        ({"cuda": 1, "neuron": 2}, "", "gpu"),
        ({"cuda": 0, "neuron": 2}, "", "neuron"),
        ({"cuda": 0, "neuron": 0}, "", "cpu"),
        ({"cuda": 0, "neuron": 2}, "gpu", "cpu"),
        ({"cuda": 1, "neuron": 2}, "neuron", "neuron"),
        ({"cuda": 1, "neuron": 2}, "cpu", "cpu"),
    ],
)
def test_a_model_that_names_no_type_runs_on_the_best_there_is(
    counts: dict[str, int], wish: str, device_type: str
) -> None:
    assert ledger(**counts).type_of(ModelSettings(device_type=wish)) == device_type


@pytest.mark.parametrize(
    ("counts", "settings", "workers"),
    [
        ({"cuda": 4, "cpu": 16}, {}, 4),
        ({"cuda": 8, "cpu": 16}, {"parallel_type": "tp", "parallel_level": 4}, 2),
        ({"cuda": 8}, {"device_ids": (1, 2)}, 2),
        ({"neuron": 24, "cpu": 16}, {}, 24),
        ({"neuron": 24, "cpu": 16}, {"cores_per_worker": 4}, 6),
        ({"cuda": 4, "cpu": 16}, {"device_type": "cpu", "cores_per_worker": 4}, 4),
        ({"cuda": 4, "cpu": 16}, {"device_type": "cpu"}, 0),  # the caller takes the number of cores
        ({"cpu": 2}, {"cores_per_worker": 4}, 1),  # which is then refused, with the numbers
    ],
)
def test_a_model_of_the_start_has_a_worker_for_each_set_of_devices(
    counts: dict[str, int], settings: dict[str, Any], workers: int
) -> None:
    assert ledger(**counts).workers_at_start(ModelSettings(**settings)) == workers


@in_loop
async def test_a_core_is_lent_again_when_the_process_that_held_it_is_gone() -> None:
    """G05: scaled down and up at once, the new worker waits for the old one's end instead of being refused."""
    books = ledger(neuron=2)
    old = lend(books, 2)
    books.leave(old[0])
    [new] = lend(books, 1, has=1)
    assert new.devices == old[0].devices
    waiting = asyncio.ensure_future(books.wait_free(new))
    await turns()
    assert not waiting.done()
    books.give_back(old[0])
    assert await waiting


@in_loop
async def test_free_cores_come_before_those_somebody_is_leaving() -> None:
    books = ledger(neuron=2)
    [leaving] = lend(books, 1)
    books.leave(leaving)
    [new] = lend(books, 1)
    assert new.devices != leaving.devices
    assert await books.wait_free(new)


@in_loop
async def test_a_device_whose_process_cannot_be_ended_is_lent_to_nobody() -> None:
    """G06."""
    books = ledger(neuron=2)
    stuck, other = lend(books, 2)
    books.leave(stuck)
    [waiter] = lend(books, 1, has=1)
    waiting = asyncio.ensure_future(books.wait_free(waiter))
    await turns()
    books.quarantine(stuck)
    assert await waiting is False
    books.give_back(waiter)
    assert [books.is_quarantined(device) for device in books.devices()] == [True, False]
    with pytest.raises(errors.NotEnoughDevices, match="1 held by a process that could not be ended"):
        lend(books, 1, has=1)
    with pytest.raises(errors.NotEnoughDevices):
        Account(books, "bert", "1.0", ModelSettings()).borrow_other(1)
    books.give_back(stuck)
    assert indices(lend(books, 1, has=1)) == [[0]]
    assert other in books.leases()


def test_the_only_gpu_in_quarantine_refuses_everybody() -> None:
    books = ledger(cuda=1)
    [stuck] = lend(books, 1)
    books.quarantine(stuck)
    with pytest.raises(errors.NotEnoughDevices) as refused:
        lend(books, 1, "other")
    assert str(refused.value) == (
        "model 'other' asks for 1 GPU (1 worker with 1 each); this machine has 1 and 0 are free, 1 held by a process "
        "that could not be ended; it may take a restart of the machine"
    )


@in_loop
async def test_a_gpu_that_is_shared_waits_for_nobody() -> None:
    books = ledger(cuda=1)
    first, second = lend(books, 2)
    books.leave(first)
    assert await books.wait_free(second)


def test_a_group_finds_no_other_gpus_when_its_own_are_quarantined() -> None:
    books = ledger(cuda=4)
    account = Account(books, "m", "1.0", ModelSettings(parallel_type="tp", parallel_level=2))
    first, _ = account.borrow(2, 0)
    account.quarantine(first)
    with pytest.raises(errors.NotEnoughDevices, match="no other devices"):
        account.borrow_other(1)


def test_a_group_does_not_stand_in_the_way_of_its_successor_of_the_same_name() -> None:
    """A version that was unregistered answers what it had accepted, while another of its name may be registered."""
    books = ledger(cuda=4)
    wish = ModelSettings(parallel_type="tp", parallel_level=4)
    former, latter = Account(books, "m", "1.0", wish), Account(books, "m", "1.0", wish)
    former.borrow(1, 0)
    assert indices(latter.borrow(1, 0)) == [[0, 1, 2, 3]]
    assert (former.fits(1), latter.fits(1)) == (0, 0)


def test_cores_that_are_not_neighbours_are_called_so() -> None:
    with pytest.raises(errors.NotEnoughDevices, match=r"2 are free; .* side by side: change deviceIds"):
        lend(ledger(neuron=4), 1, cores_per_worker=2, device_ids=(0, 2))


SETTINGS = st.builds(
    ModelSettings,
    device_type=st.sampled_from(["", "cpu", "gpu", "neuron"]),
    cores_per_worker=st.integers(0, 5),
    parallel_type=st.sampled_from(["", "tp", "custom"]),
    parallel_level=st.integers(0, 3),
    device_ids=st.sampled_from([(), (0, 1), (3, 2, 1, 0), (7,), (99,)]),
)


class Books(RuleBasedStateMachine):
    """G04: any order of borrowing, leaving, dying and coming back."""

    def __init__(self) -> None:
        super().__init__()
        self.books = ledger(cuda=4, neuron=12, cpu=8)
        # Alive, leaving (the process is still there), stuck.
        self.held: list[Lease] = []
        self.leaving: list[Lease] = []
        self.stuck: list[Lease] = []

    @rule(settings=SETTINGS, count=st.integers(0, 14), model=st.sampled_from("abc"))
    def borrow(self, settings: ModelSettings, count: int, model: str) -> None:
        before = self.books.leases()
        has = sum(lease.model == model for lease in self.held)
        try:
            leases = self.books.borrow(model, "1.0", settings, count, has)
        except errors.NotEnoughDevices:
            assert self.books.leases() == before
            return
        is_group = bool(settings.parallel_type) and self.books.type_of(settings) == "gpu"
        assert len(leases) == count or (is_group and len(leases) < count)
        for lease in leases:
            assert not any(self.books.is_quarantined(device) for device in lease.devices)
            numbers = [int(device.identity) for device in lease.devices]
            if lease.device_type == "neuron" and not settings.device_ids:
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                assert numbers[0] % len(numbers) == 0
        self.held += leases

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.books.leave(lease)
        self.leaving.append(lease)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data(), is_stuck=st.booleans())
    def end(self, data: st.DataObject, is_stuck: bool) -> None:
        lease = self.leaving.pop(data.draw(st.integers(0, len(self.leaving) - 1)))
        if is_stuck:
            self.books.quarantine(lease)
            self.stuck.append(lease)
        else:
            self.books.give_back(lease)

    @precondition(lambda self: self.stuck)
    @rule()
    def goes_after_all(self) -> None:
        self.books.give_back(self.stuck.pop())

    @invariant()
    def no_core_has_two_owners(self) -> None:
        for device in self.books.devices():
            owners = [lease for lease in self.held if device in lease.devices]
            assert device.accelerator == "cuda" or len(owners) <= 1
        assert set(self.books.leases()) == {*self.held, *self.leaving, *self.stuck}

    def teardown(self) -> None:
        for lease in (*self.held, *self.leaving, *self.stuck):
            self.books.give_back(lease)
        assert self.books.leases() == []
        assert not any(self.books.is_quarantined(device) for device in self.books.devices())
        assert len(lend(self.books, 12, device_type="neuron")) == 12


TestBooks = Books.TestCase
TestBooks.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
