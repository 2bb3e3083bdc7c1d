"""What a server adds to a registration: the order of sources (reference section 4.1), the memory guard, restoring."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import (
    Behaviour,
    FakePlacement,
    FakeWorker,
    ManualClock,
    call,
    echoes,
    fails_to_load,
    in_loop,
    loads_only,
    machinery,
    turns,
    until,
)

from torchd_archiver.packing import PackRequest, pack
from torchd_server import errors
from torchd_server.accelerators.base import Device, Found
from torchd_server.accelerators.ledger import DeviceLedger
from torchd_server.management import Management, RegisterModel, Rules
from torchd_server.metrics import Metrics
from torchd_server.placement.base import Output, WorkerSpec
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore
from torchd_server.torchserve import snapshot
from torchd_server.torchserve.model_config import lenient
from torchd_server.torchserve.properties_format import parse
from torchd_server.torchserve.snapshot_keeper import SnapshotKeeper, restore

STARTS = 4


class RealSize(FakePlacement):
    """Fake workers as large as this process."""

    async def launch(self, spec: WorkerSpec, output: Output) -> list[FakeWorker]:
        """Starts one."""
        workers = await super().launch(spec, output)
        for worker in workers:
            worker.pid = os.getpid()
        return workers


class Bench:
    """Management over a store to put archives into."""

    def __init__(self, folder: Path, rules: Rules, *behaviours: Behaviour, devices: DeviceLedger | None = None) -> None:
        self.folder = folder
        self.placement = RealSize(*(behaviours or (echoes,)))
        self.registry = ModelRegistry()
        self.metrics = Metrics()
        (folder / "scratch").mkdir()
        (folder / "store").mkdir(exist_ok=True)
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        self.management = Management(
            self.registry,
            ModelStore(folder / "store", folder / "scratch"),
            machinery(self.placement, ManualClock(), devices=devices),
            self.metrics,
            ModelSettings(),
            Limits(unload_grace=1.0),
            True,
            lambda _: STARTS,
            rules,
        )

    def pack(self, config: str | None = None, version: str = "1.0") -> str:
        if config is not None:
            (self.folder / "model-config.yaml").write_text(config)
        given = None if config is None else self.folder / "model-config.yaml"
        made = pack(
            PackRequest("m", version, str(self.folder / "handler.py"), export_path=self.folder, config_file=given)
        )
        made.rename(self.folder / "store" / f"m-{version}.mar")
        return f"m-{version}.mar"

    @property
    def settings(self) -> ModelSettings:
        return self.registry.get("m").settings


@asynccontextmanager
async def bench_in(
    folder: Path, rules: Rules | None = None, *behaviours: Behaviour, devices: DeviceLedger | None = None
) -> AsyncIterator[Bench]:
    bench = Bench(folder, rules or Rules(read_config=lenient), *behaviours, devices=devices)
    yield bench
    await bench.management.drain(0.0)
    await bench.management.stop()
    assert bench.placement.alive == []


JSON = {"m": {"1.0": {"batchSize": 2, "maxBatchDelay": 20, "responseTimeout": 22, "minWorkers": 3, "maxWorkers": 3}}}


@pytest.mark.parametrize(
    ("config", "call", "batch_size", "response_timeout"),
    [
        (None, {}, 2, 22),
        ("batchSize: 4\nresponseTimeout: 44\n", {}, 4, 44),
        ("batchSize: 4\nresponseTimeout: 44\n", {"batch_size": 8, "response_timeout": 88}, 8, 88),
        ("deviceType: cpu\n", {"response_timeout": 88}, 2, 88),  # ignored beside a YAML there (BR)
    ],
)
def test_the_call_holds_above_the_yaml_above_the_models_json(
    tmp_path: Path, config: str | None, call: dict[str, Any], batch_size: int, response_timeout: int
) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, Rules(model_settings=JSON, read_config=lenient)) as bench:
            await bench.management.register(RegisterModel(bench.pack(config), **call))
            assert (bench.settings.batch_size, bench.settings.response_timeout) == (batch_size, response_timeout)
            assert bench.settings.max_batch_delay_ms == 20

    main()


@pytest.mark.parametrize(
    ("config", "call", "workers"),
    [
        ("minWorkers: 1\nmaxWorkers: 2\n", {"initial_workers": 5}, (1, 2)),
        ("minWorkers: 2\n", {"initial_workers": 1}, (1, 1)),  # half a range is none
        (None, {"initial_workers": 1}, (1, 1)),
        (None, {}, (0, 0)),  # the JSON's workers are for models loaded at start
        (None, {"at_startup": True}, (3, 3)),
        ("minWorkers: 1\nmaxWorkers: 2\n", {"at_startup": True}, (1, 2)),
    ],
)
def test_the_yamls_workers_hold_above_the_calls(
    tmp_path: Path, config: str | None, call: dict[str, Any], workers: tuple[int, int]
) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, Rules(model_settings=JSON, read_config=lenient)) as bench:
            await bench.management.register(RegisterModel(bench.pack(config), **call))
            assert (bench.settings.min_workers, bench.settings.max_workers) == workers

    main()


def test_default_workers_per_model_is_also_the_default_of_initial_workers(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, Rules(workers_by_api=2)) as bench:
            change = await bench.management.register(RegisterModel(bench.pack()))
            assert (change.wanted, change.ready) == (2, 2)

    main()


def test_a_wrong_value_is_a_warning_under_torchserve_and_a_refusal_under_torchd(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            archive = bench.pack("batchSize: many\nmaxBatchDelay: 7\n")
            await bench.management.register(RegisterModel(archive))
            assert (bench.settings.batch_size, bench.settings.max_batch_delay_ms) == (1, 7)
        (tmp_path / "strict").mkdir()
        async with bench_in(tmp_path / "strict", Rules()) as bench:
            with pytest.raises(errors.ArchiveInvalid, match="batchSize: 'many'"):
                await bench.management.register(RegisterModel(bench.pack("batchSize: many\n")))

    with caplog.at_level(logging.WARNING):
        main()
    assert "model-config.yaml of m: batchSize: 'many' will not do" in caplog.text


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("parallelType: tp\ntorchrun: {nproc-per-node: many}\n", "torchrun.nproc-per-node: 'many' will not do"),
        ("parallelType: tp\nparallelLevel: 2\nasyncCommunication: true\n", "use parallelType custom"),
    ],
)
def test_ranks_that_cannot_be_are_refused_by_name(tmp_path: Path, config: str, named: str) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, Rules()) as bench:
            with pytest.raises(errors.ArchiveInvalid, match=f"(?i){named}"):
                await bench.management.register(RegisterModel(bench.pack(config)))
            assert bench.registry.names() == []

    main()


def test_a_worker_of_several_ranks_takes_the_memory_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            config = "parallelType: tp\nparallelLevel: 3\ntorchrun: {rdzv-backend: c10d}\n"
            await bench.management.register(RegisterModel(bench.pack(config), initial_workers=1))
            (worker,) = bench.registry.get("m").describe(True).workers
            resident = psutil.Process().memory_info().rss
            assert 2.5 * resident < worker.memory_bytes < 3.5 * resident
            assert len(bench.placement.launched) == 3

    main()
    assert "model-config.yaml of m: torchrun: rdzv-backend not read" in caplog.text


# One worker per core, as far as there is memory.


def with_memory(room: float) -> Rules:
    """A machine with memory for so many further processes of the size of this one."""
    return Rules(available_memory=lambda: int(room * psutil.Process().memory_info().rss))


@pytest.mark.parametrize(("room", "workers"), [(100, STARTS), (1.5, 2), (0, 1)])
def test_workers_are_added_while_there_is_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: float, workers: int
) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, with_memory(room)) as bench:
            bench.pack()
            await bench.management.register_at_start("m-1.0.mar")
            assert bench.registry.get("m").wanted_workers == 1
            (kept,) = bench.management.registered()
            assert kept.settings.min_workers == STARTS  # a snapshot written now
            assert bench.management.describe("m")[0].settings.min_workers == STARTS
            await until(lambda: bench.registry.get("m").ready_workers == workers)
            await turns()
            assert bench.settings.min_workers == workers

    with caplog.at_level(logging.WARNING):
        main()
    assert ("there is no memory for more" in caplog.text) == (workers < STARTS)


def test_who_scales_meanwhile_is_obeyed(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, with_memory(100)) as bench:
            bench.pack()
            await bench.management.register_at_start("m-1.0.mar")
            await bench.management.scale("m", "", 2, 2, True)
            await turns()
            assert bench.registry.get("m").wanted_workers == 2

    main()


def test_a_number_that_somebody_gave_is_not_questioned(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, with_memory(0)) as bench:
            await bench.management.register(RegisterModel(bench.pack(), initial_workers=3))
            assert bench.registry.get("m").ready_workers == 3

    main()


def test_a_model_that_cannot_be_loaded_is_not_multiplied(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, with_memory(100), fails_to_load) as bench:
            bench.pack()
            await bench.management.register_at_start("m-1.0.mar")
            await until(lambda: bench.placement.launched and not bench.placement.alive)
            await turns()
            assert bench.registry.get("m").wanted_workers == 1

    main()


# Snapshots.


def last_models(folder: Path) -> dict[str, Any]:
    file = snapshot.choose(folder).file
    assert file is not None
    found: dict[str, Any] = json.loads(parse(file.read_text())["model_snapshot"])["models"]
    return found


def kinds(folder: Path) -> list[str]:
    return sorted(file.stem.partition("-")[2] for file in folder.iterdir())


def test_every_change_is_in_the_next_snapshot_and_failed_calls_are_not(tmp_path: Path) -> None:
    """Section 3.4."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            folder = tmp_path / "logs" / "config"
            moments = iter(datetime(2026, 1, 1, 0, 0, second) for second in range(60))
            keeper = SnapshotKeeper(folder, {}, bench.management, lambda: next(moments))
            await keeper.start()
            assert kinds(folder) == ["startup"]
            with pytest.raises(errors.ArchiveNotFound):
                await bench.management.register(RegisterModel("none.mar"))
            assert kinds(folder) == ["startup"]
            await bench.management.register(RegisterModel(bench.pack(), initial_workers=1, batch_size=4))
            await bench.management.register(RegisterModel(bench.pack(version="2.0")))
            await until(lambda: set(last_models(folder).get("m", {})) == {"1.0", "2.0"})
            bench.management.set_default("m", "2.0")
            await bench.management.scale("m", "2.0", 1, 2, True)
            await until(lambda: last_models(folder)["m"]["2.0"]["minWorkers"] == 1)
            models = last_models(folder)["m"]
            assert (models["1.0"]["batchSize"], models["1.0"]["defaultVersion"]) == (4, False)
            assert (models["2.0"]["maxWorkers"], models["2.0"]["defaultVersion"]) == (2, True)
            await bench.management.unregister("m", "1.0")
            await keeper.stop()
            assert set(last_models(folder)["m"]) == {"2.0"}
            assert "shutdown" in kinds(folder)

    main()


def test_a_snapshot_that_cannot_be_written_is_an_error_in_the_log_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            (tmp_path / "logs").write_text("a file where the folder should be")
            keeper = SnapshotKeeper(tmp_path / "logs" / "config", {}, bench.management)
            await keeper.start()
            change = await bench.management.register(RegisterModel(bench.pack(), initial_workers=1))
            await keeper.stop()
            assert change.ready == 1

    with caplog.at_level(logging.ERROR):
        main()
    assert "no snapshot of the registered models could be written" in caplog.text


def test_what_was_registered_is_registered_again(tmp_path: Path) -> None:
    """D07: workers, settings, the handler of the call, the default version; loadedAtStartup is false."""

    @in_loop
    async def main() -> None:
        folder = tmp_path / "snapshots"
        async with bench_in(tmp_path) as bench:
            one = RegisterModel(
                bench.pack(), initial_workers=2, batch_size=4, max_batch_delay_ms=0, handler="handler.py"
            )
            await bench.management.register(one)
            await bench.management.register(RegisterModel(bench.pack(version="2.0"), initial_workers=0))
            bench.management.set_default("m", "2.0")
            before = bench.management.registered()
            snapshot.write(folder, "shutdown", {}, before, datetime(2026, 1, 1))
        document = {"models": last_models(folder)}
        again = tmp_path / "again"
        again.mkdir()
        (again / "store").symlink_to(tmp_path / "store")
        async with bench_in(again) as bench:
            await restore(document, bench.management)
            assert bench.management.registered() == before
            await until(lambda: bench.registry.get("m", "1.0").ready_workers == 2)
            assert not bench.management.describe("m")[0].loaded_at_startup

    main()


def test_one_broken_model_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D10, and what TorchServe's own faults and KServe's minimal snapshots leave out or put in."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            (tmp_path / "store" / "junk.mar").write_bytes(b"junk")
            state = {"marName": bench.pack(), "minWorkers": 1, "maxBatchDelay": -10000}
            versions = {"0.1": {"marName": "gone.mar"}, "0.2": {"marName": "junk.mar"}, "1.0": state}
            await restore({"models": {"m": versions}}, bench.management)
            assert [model.version for model in bench.registry] == ["1.0"]
            assert (bench.settings.max_batch_delay_ms, bench.settings.max_workers) == (100, 1)

    with caplog.at_level(logging.ERROR):
        main()
    assert "version 0.1 of the snapshot was not registered" in caplog.text
    assert "version 0.2 of the snapshot was not registered" in caplog.text


def test_a_burst_of_changes_is_written_in_order(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path) as bench:
            keeper = SnapshotKeeper(tmp_path / "snapshots", {}, bench.management)
            await bench.management.register(RegisterModel(bench.pack()))
            await keeper.start()
            calls = [bench.management.scale("m", "", 0, most, False) for most in range(30)]
            await asyncio.gather(*calls)
            await keeper.stop()
            assert last_models(tmp_path / "snapshots")["m"]["1.0"]["maxWorkers"] == 29

    main()


def test_an_unregister_call_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    """unregister_model_timeout: what is unanswered then ends with a reason."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, Rules(unregister_timeout=0.0), loads_only) as bench:
            await bench.management.register(RegisterModel(bench.pack(), initial_workers=1))
            request = bench.registry.get("m").submit(call(b"never answered"))
            await bench.management.unregister("m", "")
            assert isinstance(request.error, errors.Draining)

    main()


def machine(kind: str, count: int) -> DeviceLedger:
    return DeviceLedger({kind: Found(tuple(Device(kind, number, str(number)) for number in range(count)))})


def test_a_registration_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a model nor a folder nor a series; the default version of the same name stays."""

    async def main() -> None:
        devices = machine("neuron", 2)
        async with bench_in(tmp_path, devices=devices) as bench:
            for version in ("1.0", "2.0"):
                with pytest.raises(errors.NotEnoughDevices, match="asks for 3 NeuronCores"):
                    await bench.management.register(RegisterModel(bench.pack(version=version), initial_workers=3))
                assert bench.registry.names() == (["m"] if version == "2.0" else [])
                kept = {model.unpacked.directory for model in bench.registry}
                assert set((tmp_path / "scratch").iterdir()) == kept
                assert f'model_version="{version}"' not in bench.metrics.text().decode()
                if version == "1.0":
                    await bench.management.register(RegisterModel("m-1.0.mar", initial_workers=1))
            with pytest.raises(errors.NotEnoughDevices):
                await bench.management.scale("m", "", 3, 3, True)
            assert (bench.settings.min_workers, bench.settings.max_workers) == (1, 1)
            [first, second] = bench.management.devices().devices
            assert [holder.model for holder in first.holders] == ["m"]
            assert second.holders == ()
            await bench.management.unregister("m", "")
            assert devices.leases() == []

    asyncio.run(main())


def test_groups_that_do_not_fit_are_not_wanted(tmp_path: Path) -> None:
    """torchserve.md 7.3: the number of workers is that of the groups of GPUs."""

    async def main() -> None:
        async with bench_in(tmp_path, devices=machine("cuda", 8)) as bench:
            archive = bench.pack("parallelType: tp\nparallelLevel: 4\nminWorkers: 3\nmaxWorkers: 5\n")
            change = await bench.management.register(RegisterModel(archive))
            assert (change.wanted, change.ready) == (2, 2)
            assert (bench.settings.min_workers, bench.settings.max_workers) == (2, 2)

    asyncio.run(main())


def test_a_model_that_nobody_gave_a_number_grows_as_far_as_there_are_devices(tmp_path: Path) -> None:
    """Others may have taken them since its first worker was started."""

    async def main() -> None:
        devices = machine("neuron", STARTS)
        async with bench_in(tmp_path, with_memory(100), devices=devices) as bench:
            await bench.management.register_at_start(f"m={bench.pack()}")
            devices.borrow("other", "1.0", ModelSettings(), 2)
            await until(lambda: not bench.management._growing)
            assert bench.registry.get("m").wanted_workers == STARTS - 2

    asyncio.run(main())
