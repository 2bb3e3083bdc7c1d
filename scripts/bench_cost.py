#!/usr/bin/env python3
"""Compares batching by cost with batching by arrival, side by side: throughput and latency of texts of mixed length.

Both serve the same BERT of random weights in one daemon, from the same archive but for `batchCost: none`. Each point is
measured in rounds that take turns, by closed-loop gRPC clients in a process of their own; texts have 8 to 128 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
import yaml
from demo.daemon import Daemon, DaemonFailed
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from torchd_archiver.packing import PackRequest, pack
from torchd_clients import AsyncClient, Client, TorchdError

SERVED = Path(__file__).with_name("texts")
ORDERS = ("arrival", "cost")
REQUEST_SECONDS = 120.0
TEXTS = 2000
# A model as small as a test wants it.
QUICK: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True, slots=True)
class Point:
    """One order at one concurrency: answers and tokens per second, latency over all rounds."""

    throughput: float
    tokens: float
    p50_ms: float
    p99_ms: float
    most_ms: float
    noise: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both orders at one concurrency."""

    workers: int
    concurrency: int
    arrival: Point
    cost: Point

    @property
    def throughput_ratio(self) -> float:
        """Cost over arrival: more is better."""
        return self.cost.throughput / self.arrival.throughput

    @property
    def p99_ratio(self) -> float:
        """Cost over arrival: less is better."""
        return self.cost.p99_ms / self.arrival.p99_ms


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: answers as (latency in seconds, tokens of the text)."""

    seconds: float
    answers: list[tuple[float, int]]


def main() -> int:
    """Measures every point and prints the comparison; 1 where cost falls short of the ratio asked for."""
    arguments = _parser().parse_args()
    try:
        comparisons = list(_compare(arguments))
    except (DaemonFailed, TorchdError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(_table(comparisons, arguments))
    if arguments.json:
        rows = [asdict(row) | {"ratio": row.throughput_ratio, "p99_ratio": row.p99_ratio} for row in comparisons]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row.throughput_ratio < arguments.least for row in comparisons) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dtype", default="", help="what the model computes in: bfloat16, float16 (float32)")
    add("--quick", action="store_true", help="a tiny model instead of BERT-base")
    add("--batch-size", type=int, default=8, help="requests at most in one batch (%(default)s)")
    add("--delay-ms", type=int, default=20, help="milliseconds a batch may wait to fill (%(default)s)")
    add("--workers", type=int, nargs="+", default=[2], help="numbers of workers, of one thread each (2)")
    add("--concurrency", type=int, nargs="+", default=[32], help="numbers of clients (32)")
    add("--seconds", type=float, default=20.0, help="length of one round (%(default)s)")
    add("--warm-up", type=float, default=4.0, help="seconds before it that are not counted (%(default)s)")
    add("--rounds", type=int, default=1, help="rounds per point (%(default)s)")
    add("--least", type=float, default=0.0, help="exit code 1 below this ratio of throughput")
    add("--json", type=Path, metavar="FILE", help="write every figure to this file")
    return parser


def _compare(arguments: argparse.Namespace) -> Iterator[Comparison]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(1, mp_context=spawn) as clients:
        store = Path(scratch) / "store"
        store.mkdir()
        sizes: dict[str, Any] = QUICK if arguments.quick else {}
        # torch, once here, would be in the measurement's way; the texts stay with the clients.
        with ProcessPoolExecutor(1, mp_context=spawn) as once:
            once.submit(write_model, store, sizes).result()
        clients.submit(make_texts, store).result()
        for workers in arguments.workers:
            with _daemon(Path(scratch) / str(workers), store, workers, arguments) as daemon:
                address = daemon.wait_ready(180.0).grpc_inference
                for order in ORDERS:
                    clients.submit(_wait_loaded, address, order).result()
                for concurrency in arguments.concurrency:
                    rounds: dict[str, list[Round]] = {order: [] for order in ORDERS}
                    for order in ORDERS * arguments.rounds:
                        rounds[order].append(_measure(clients, address, order, concurrency, arguments))
                    yield Comparison(workers, concurrency, *(_point(rounds[order]) for order in ORDERS))
                daemon.stop()


def write_model(store: Path, sizes: dict[str, Any]) -> None:
    """In a process of its own: the weights, the tokenizer and the sizes of the model."""
    import torch
    from safetensors.torch import save_model
    from texts import corpus
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    (store / "sizes.json").write_text(json.dumps(sizes))
    made = torch.nn.Module()
    made.net = BertForSequenceClassification(BertConfig(**sizes))
    save_model(made, str(store / "model.safetensors"))
    corpus.make_tokenizer(corpus.prose()).save(str(store / "tokenizer.json"))


_texts: list[bytes] = []


def make_texts(store: Path) -> None:
    """In the clients' process: what they will send."""
    from texts import corpus
    from tokenizers import Tokenizer

    _texts[:] = corpus.requests(corpus.prose(), Tokenizer.from_file(str(store / "tokenizer.json")), TEXTS)


def _daemon(folder: Path, store: Path, workers: int, arguments: argparse.Namespace) -> Daemon:
    folder.mkdir()
    for order in ORDERS:
        _pack(folder, store, order, workers, arguments)
    any_free_port = [
        word
        for name in ("grpc-inference", "grpc-management", "inference", "management", "metrics")
        for word in (f"--{name}-port", "0")
    ]
    models = [f"{order}={order}.mar" for order in ORDERS]
    command = ["--model-store", str(folder), "--models", *models, "--no-token-auth", *any_free_port]
    return Daemon(command, run_dir=folder / "run", log=folder / "log")


def _pack(folder: Path, store: Path, order: str, workers: int, arguments: argparse.Namespace) -> None:
    config = folder / f"{order}.yaml"
    settings: dict[str, Any] = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": arguments.batch_size,
        "maxBatchDelay": arguments.delay_ms,
        "jobQueueSize": 1000,
        "workerThreads": 1,
    }
    if order == "arrival":
        settings["batchCost"] = "none"
    if arguments.dtype:
        settings["optimize"] = {"dtype": arguments.dtype}
    config.write_text(yaml.safe_dump(settings))
    pack(
        PackRequest(
            model_name=order,
            version="1.0",
            handler=str(SERVED / "handler.py"),
            model_file=SERVED / "model.py",
            serialized_file=store / "model.safetensors",
            extra_files=(str(store / "tokenizer.json"), str(store / "sizes.json")),
            config_file=config,
            export_path=folder,
            archive_format="zip-store",
        )
    )


def _measure(clients: Executor, address: str, model: str, concurrency: int, arguments: argparse.Namespace) -> Round:
    return clients.submit(_load, address, model, concurrency, arguments.warm_up, arguments.seconds).result()


def _wait_loaded(address: str, model: str) -> None:
    """In the clients' process: one answered request."""
    with Client(address) as client:
        client.predict(model, _texts[0], timeout=REQUEST_SECONDS)


def _load(address: str, model: str, concurrency: int, warm_up: float, seconds: float) -> Round:
    """In the clients' process: so many clients, each sending its next request when it has its answer."""
    return uvloop.run(_closed_loop(address, model, concurrency, warm_up, seconds))


async def _closed_loop(address: str, model: str, concurrency: int, warm_up: float, seconds: float) -> Round:
    answers: list[tuple[float, int]] = []
    texts = itertools.cycle(_texts)
    async with AsyncClient(address) as client:
        begin = time.perf_counter() + warm_up
        end = begin + seconds

        async def loop() -> None:
            sent = time.perf_counter()
            while sent < end:
                answer = json.loads(await client.predict(model, next(texts), timeout=REQUEST_SECONDS))
                now = time.perf_counter()
                if begin <= now < end:
                    answers.append((now - sent, answer["tokens"]))
                sent = now

        await asyncio.gather(*(loop() for _ in range(concurrency)))
    return Round(seconds, answers)


def _point(rounds: list[Round]) -> Point:
    throughputs = [len(each.answers) / each.seconds for each in rounds]
    latencies = sorted(1000 * latency for each in rounds for latency, _ in each.answers)
    if not latencies:
        raise DaemonFailed("no answer within a round; give --seconds more")
    median = statistics.median(throughputs)
    return Point(
        throughput=median,
        tokens=sum(tokens for each in rounds for _, tokens in each.answers) / sum(each.seconds for each in rounds),
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[len(latencies) * 99 // 100],
        most_ms=latencies[-1],
        noise=(max(throughputs) - min(throughputs)) / median,
    )


def _table(rows: list[Comparison], arguments: argparse.Namespace) -> Table:
    model = "a tiny BERT" if arguments.quick else "BERT-base"
    kind = arguments.dtype or "float32"
    table = Table(title=f"{model}, {kind}, batches of {arguments.batch_size}", box=SIMPLE_HEAD, padding=0)
    headers = ("req/s", "tokens/s", "p50 ms", "p99 ms", "most ms", "noise", "req/s\nratio", "p99\nratio")
    for header in ("workers", "clients", "by", *headers):
        table.add_column(header, justify="right")
    for row in rows:
        for order, ratios in (("arrival", ("", "")), ("cost", (f"{row.throughput_ratio:.2f}", f"{row.p99_ratio:.2f}"))):
            point: Point = getattr(row, order)
            figures = (point.throughput, point.tokens, point.p50_ms, point.p99_ms, point.most_ms)
            cells = (f"{figure:.1f}" if figure < 100 else f"{figure:.0f}" for figure in figures)
            table.add_row(str(row.workers), str(row.concurrency), order, *cells, f"{point.noise:.2f}", *ratios)
    return table


if __name__ == "__main__":
    sys.exit(main())
