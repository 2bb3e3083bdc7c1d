"""The page as a whole: who is on it, and that making it holds up nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection

from fakes import in_loop

from torchd_protos.frames import Metric
from torchd_server.metrics import Metrics, NoSink


class Slow(NoSink):
    """TorchServe's metrics, taking their time; remembers what it was told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.renderings = 0
        self.told: list[tuple[object, ...]] = []

    def snapshot(self) -> Callable[[Collection[str]], bytes]:
        self.renderings += 1

        def render(names: Collection[str]) -> bytes:
            self.go.wait(30)
            return b"theirs 1\n"

        return render

    def answered(self, model: str, version: str, queue_seconds: float, total_seconds: float) -> None:
        self.told.append(("answered", model, version, queue_seconds, total_seconds))

    def thread_time(self, seconds: float) -> None:
        self.told.append(("thread", round(seconds, 6)))

    def of_handler(self, model: str, version: str, worker: str, metric: Metric) -> None:
        self.told.append(("handler", model, version, worker, metric.name))

    def forget(self, model: str, version: str, is_last: bool) -> None:
        self.told.append(("forget", model, version, is_last))


@in_loop
async def test_many_readers_share_one_page_and_nobody_waits_for_it() -> None:
    """O02: 100 scrapes at once."""
    sink = Slow()
    metrics = Metrics(sink)
    readers = [asyncio.create_task(metrics.page()) for _ in range(100)]
    for _ in range(10):
        await asyncio.sleep(0)  # the loop turns while the page is being made
    readers.pop().cancel()  # one that leaves takes nothing away from the others
    sink.go.set()
    pages = await asyncio.gather(*readers)
    assert len(set(pages)) == 1
    assert sink.renderings == 1
    assert pages[0].startswith(b"theirs 1\n")
    assert b"torchd_tasks 1" in pages[0]
    assert b"torchd_log_records_dropped_total 0.0" in pages[0]


@in_loop
async def test_names_choose_among_ours_too() -> None:
    sink = Slow()
    sink.go.set()
    metrics = Metrics(sink, log_records_dropped=lambda: 7)
    of_model = metrics.of_model("m", "1")
    of_model.outcome("ok")
    page = await metrics.page(["torchd_requests_total", "torchd_log_records_dropped_total"])
    samples = [line for line in page.decode().splitlines() if not line.startswith("#")]
    assert sorted(samples[1:]) == [
        "torchd_log_records_dropped_total 7.0",
        'torchd_requests_total{model="m",outcome="ok",version="1"} 1.0',
    ]


@in_loop
async def test_our_families_stay_off_the_page_where_torchserves_is_empty() -> None:
    """Reference 2.4: metrics_mode=log."""
    assert await Metrics(has_own_page=False).page() == b""


def test_a_batchs_thread_time_is_what_its_handler_did_not_take() -> None:
    sink = Slow()
    of_model = Metrics(sink).of_model("m", "1")
    of_model.worker_seconds(0.030)
    of_model.of_handler(Metric("PredictionTime", 20.0, "Milliseconds", "gauge"), "4")
    assert sink.told == [("thread", 0.01), ("handler", "m", "1", "4", "PredictionTime")]


def test_the_last_version_takes_the_models_series_along() -> None:
    sink = Slow()
    metrics = Metrics(sink)
    versions = [metrics.of_model("m", version) for version in ("1", "2")]
    for version in versions:
        version.forget()
    assert sink.told == [("forget", "m", "1", False), ("forget", "m", "2", True)]
