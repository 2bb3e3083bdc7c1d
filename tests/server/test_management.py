"""The use cases of management over a real store and fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
    loads,
    machinery,
    until,
)

from torchd_archiver.packing import PackRequest, pack
from torchd_server import errors
from torchd_server.management import Management, RegisterModel
from torchd_server.metrics import Metrics
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, ModelSettings
from torchd_server.store import ModelStore


class Bench:
    """Management with two versions of one archive in its store."""

    def __init__(self, folder: Path, *behaviours: Behaviour, api: bool = True, limits: Limits | None = None) -> None:
        self.placement = FakePlacement(*behaviours)
        self.registry = ModelRegistry()
        self.metrics = Metrics()
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        (folder / "store").mkdir()
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        for version in ("1.0", "2.0"):
            made = pack(PackRequest("m", version, str(folder / "handler.py"), export_path=folder))
            made.rename(folder / "store" / f"m-{version}.mar")
        self.management = Management(
            self.registry,
            ModelStore(folder / "store", self.scratch),
            machinery(self.placement, ManualClock()),
            self.metrics,
            ModelSettings(),
            limits or Limits(unload_grace=1.0),
            api,
            lambda _: 2,
        )

    def unpacked(self) -> int:
        return len(list(self.scratch.iterdir()))


@asynccontextmanager
async def bench_in(
    folder: Path, *behaviours: Behaviour, api: bool = True, limits: Limits | None = None
) -> AsyncIterator[Bench]:
    bench = Bench(folder, *behaviours, api=api, limits=limits)
    yield bench
    await bench.management.drain(0.0)
    await bench.management.stop()
    assert (bench.unpacked(), bench.placement.alive) == (0, [])


def one(version: str = "1.0", **fields: Any) -> RegisterModel:
    return RegisterModel(f"m-{version}.mar", **{"initial_workers": 1, **fields})


def test_register_scale_describe_and_unregister(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            change = await bench.management.register(one(batch_size=4))
            assert (change.model, change.version, change.wanted, change.ready, change.done) == ("m", "1.0", 1, 1, True)
            scaled = await bench.management.scale("m", "", 2, None, True)
            assert (scaled.wanted, scaled.ready, scaled.version_was_given) == (2, 2, False)
            (status,) = bench.management.describe("m")
            assert (status.settings.batch_size, status.is_default, len(status.workers)) == (4, True, 2)
            assert [model.name for model in bench.management.list(100, 0).models] == ["m"]
            await bench.management.unregister("m", "")
            assert (bench.registry.names(), bench.unpacked(), bench.placement.alive) == ([], 0, [])

    main()


def test_a_register_that_cannot_get_its_workers_leaves_nothing(tmp_path: Path) -> None:
    """M07: and a version that serves goes on serving."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes, fails_to_load) as bench:
            await bench.management.register(one("1.0"))
            with pytest.raises(errors.LoadFailed, match="no foo"):
                await bench.management.register(one("2.0"))
            assert [version.version for version in bench.management.describe("m", "all")] == ["1.0"]
            assert (bench.unpacked(), bench.registry.get("m").ready_workers) == (1, 1)

    main()


def test_of_many_who_register_one_version_one_succeeds(tmp_path: Path) -> None:
    """M01, TS21."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            calls = [bench.management.register(one(version)) for version in ("1.0", "2.0") * 5]
            results = await asyncio.gather(*calls, return_exceptions=True)
            refused = [result for result in results if isinstance(result, Exception)]
            assert all(isinstance(result, errors.ModelExists) for result in refused)
            assert (len(refused), len(bench.registry.versions("m")), bench.unpacked()) == (8, 2, 2)

    main()


def test_the_default_version_goes_last(tmp_path: Path) -> None:
    """M08."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            for version in ("1.0", "2.0"):
                await bench.management.register(one(version))
            with pytest.raises(errors.DefaultVersionInUse):
                await bench.management.unregister("m", "1.0")
            bench.management.set_default("m", "2.0")
            await bench.management.unregister("m", "1.0")
            assert bench.registry.get("m").version == "2.0"

    main()


def test_a_client_that_leaves_does_not_stop_a_change_half_way(tmp_path: Path) -> None:
    """M09."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            register = asyncio.ensure_future(bench.management.register(one()))
            await asyncio.sleep(0)
            register.cancel()
            await until(lambda: bench.registry.names() and bench.registry.get("m").ready_workers)

    main()


def test_a_name_may_come_back_while_its_old_bearer_still_answers(tmp_path: Path) -> None:
    """M02: two owners of one label, and the one who leaves takes only his own."""

    async def slow(worker: FakeWorker) -> None:
        await loads(worker)

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, slow, echoes) as bench:
            await bench.management.register(one())
            bench.registry.get("m").submit(call())
            leaving = asyncio.ensure_future(bench.management.unregister("m", ""))
            await until(lambda: not bench.registry.names())
            await bench.management.register(one())
            await leaving
            await bench.registry.get("m").submit(call(b"x")).answer()
            text = bench.metrics.text().decode()
            assert 'torchd_workers{model="m",state="ready",version="1.0"} 1.0' in text

    main()


def test_a_later_version_of_a_model_loaded_at_startup_is_described_as_one(tmp_path: Path) -> None:
    """TorchServe asks by name; seen in the `loadedAtStartup` of version 2.0 of a model of load_models."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            await bench.management.register_at_start("m-1.0.mar")
            await bench.management.register(one("2.0"))
            assert [status.loaded_at_startup for status in bench.management.describe("m", "all")] == [True, True]

    main()


def test_without_the_model_api_only_the_command_line_registers(tmp_path: Path) -> None:
    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes, api=False) as bench:
            with pytest.raises(errors.ModelApiDisabled):
                await bench.management.register(one())
            await bench.management.register_at_start("other=m-1.0.mar")
            assert bench.registry.get("other").wanted_workers == 2
            assert bench.management.describe("other")[0].loaded_at_startup
            with pytest.raises(errors.ModelApiDisabled):
                await bench.management.unregister("other", "")

    main()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model_name": "../x"}, errors.BadRequest),
        ({"model_name": "a b"}, errors.BadRequest),
        ({"batch_size": 0}, errors.BadRequest),
        ({"initial_workers": -1}, errors.BadRequest),
        ({"initial_workers": 65}, errors.BadRequest),
        ({"response_timeout": 10**8}, errors.BadRequest),
    ],
)
def test_a_register_call_that_will_not_do_leaves_nothing(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception]
) -> None:
    """S16, S37."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes) as bench:
            with pytest.raises(error):
                await bench.management.register(one(**fields))
            assert (bench.registry.names(), bench.unpacked()) == ([], 0)

    main()


def test_the_limits_hold_at_their_number(tmp_path: Path) -> None:
    """P07."""

    @in_loop
    async def main() -> None:
        async with bench_in(tmp_path, echoes, limits=Limits(models=2, versions_per_model=1)) as bench:
            for name in ("a", "b"):
                await bench.management.register(one(model_name=name, initial_workers=0))
            for name, version in (("c", "1.0"), ("a", "2.0")):
                with pytest.raises(errors.Overloaded):
                    await bench.management.register(one(version, model_name=name))
            page = bench.management.list(1, 0)
            assert ([model.name for model in page.models], page.next_token) == (["a"], 1)
            assert bench.management.list(1, 1).next_token is None

    main()
