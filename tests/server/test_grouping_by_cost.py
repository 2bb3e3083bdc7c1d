"""When a version's requests are taken by cost: its settings say, or its handler does once a worker has loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Behaviour, FakePlacement, FakeWorker, ManualClock, answers, body_of, call, in_loop, machinery, turns

from torchd_protos.frames import Batch, Load, Loaded, Message
from torchd_server.batching import modes
from torchd_server.metrics import Metrics
from torchd_server.model import ModelVersion
from torchd_server.settings import ModelSettings, SequenceHeaders
from torchd_server.store import UnpackedModel

SIZE = 2
SHORT, LONG = b"short", b"long" * 100


def says(cost: str) -> Behaviour:
    """A worker whose handler is to be batched by this; it answers everything."""

    async def behave(worker: FakeWorker) -> None:
        worker.hello()
        await worker.hears(Load)
        worker.say(Loaded(cost=cost))
        while isinstance(message := await worker.hears(Message), Batch):
            worker.begin(message.step)
            worker.say(*answers(message))
        worker.exit(0)

    return behave


class Bench:
    """A version with one fake worker, and requests that wait before it has loaded."""

    def __init__(self, cost: str, **settings: Any) -> None:
        self.placement = FakePlacement(says(cost))
        config: dict[str, Any] = {}
        files = (config, json.dumps(config), "{}")
        unpacked = UnpackedModel("m.mar", Path("/nowhere"), "m", "1.0", "handler.py", "python", *files, True)
        self.model = ModelVersion(
            "m",
            "1.0",
            unpacked,
            ModelSettings(**{"batch_size": SIZE, **settings}),
            machinery(self.placement, ManualClock()),
            Metrics().of_model("m", "1.0"),
            lambda: None,
        )

    async def batches(self, *bodies: bytes) -> list[list[bytes]]:
        """What the worker ran: the requests waited while it loaded."""
        self.model.scale(1, 1)
        requests = [self.model.submit(call(body)) for body in bodies]
        assert await self.model.settle() is None
        for request in requests:
            await request.answer()
        await turns()
        [worker] = self.placement.launched
        return [[body_of(item) for item in batch.items] for batch in worker.told(Batch)]

    async def end(self) -> None:
        await self.model.drain(0.0)
        await self.model.stop(1.0)


@pytest.mark.parametrize(
    ("handler", "settings", "groups"),
    [
        ("bytes", {}, True),
        ("tokens", {}, True),
        ("", {}, False),
        ("", {"batch_cost": "bytes"}, True),
        ("bytes", {"batch_cost": "none"}, False),
        ("stars", {}, False),
    ],
)
def test_who_says_by_what(handler: str, settings: dict[str, Any], groups: bool) -> None:
    """Requests that waited before the worker had loaded are grouped as well, and none is lost."""

    @in_loop
    async def run() -> None:
        bench = Bench(handler, **settings)
        ran = await bench.batches(SHORT, LONG, LONG, SHORT)
        grouped, by_arrival = [[SHORT, SHORT], [LONG, LONG]], [[SHORT, LONG], [LONG, SHORT]]
        assert ran == (grouped if groups else by_arrival)
        await bench.end()

    run()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"batch_size": 8}, "bytes"),
        ({"batch_size": 8, "batch_cost": "pixels"}, "pixels"),
        ({"batch_size": 8, "batch_cost": "none"}, ""),
        ({"batch_size": 8, "continuous_batching": True}, ""),
        ({"batch_size": 8, "async_communication": True}, ""),
        ({"batch_size": 8, "sequence_batching": True}, ""),
    ],
)
def test_what_is_grouped_in_which_mode(settings: dict[str, Any], key: str) -> None:
    """Where requests join one by one there is no batch to pad, and a sequence has its order."""
    given = ModelSettings(**settings)
    policy = modes.policy_for(given, ManualClock(), SequenceHeaders(), ("m", "1.0"))
    assert modes.group_by(policy, given, "bytes", ManualClock()) == key
