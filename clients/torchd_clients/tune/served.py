"""The daemon's side of a search: the model in one setting at a time, asked and measured."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psutil
from google.protobuf.json_format import MessageToDict

from torchd_clients.bench.load import Load
from torchd_clients.bench.run import run_load
from torchd_clients.bench.target import Target
from torchd_clients.client import Client
from torchd_clients.errors import TorchdError, Unavailable
from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.outcome import Run
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Setting
from torchd_clients.tune.variants import Variants
from torchd_protos.management_pb2 import ModelDescription

# Handlers that prepare for these when they load must load anew for another batch size.
_LOADED_FOR_A_SIZE = frozenset({"compiledBatchSize", "traced", "continuousBatching", "sequenceBatching", "pt2"})
# Other programs need some, and so does the search.
_OF_THE_MEMORY = 0.8
# Of a run, before what counts.
_WARMUP = 0.25
# Answers for each client.
_FEW = 4
_REASON = 300


class NotLoaded(Exception):
    """The model does not come up in this setting; the text says why."""


class RequestsFailed(Exception):
    """Requests were answered with errors; the text says with which."""


class Served:
    """Registers variants with a daemon, and changes the living model where that comes to the same."""

    def __init__(
        self, client: Client, variants: Variants, target: Target, *, load_seconds: float, request_seconds: float
    ) -> None:
        self._client = client
        self._variants = variants
        self._target = replace(target, model=variants.model_name)
        self._load_seconds = load_seconds
        self._request_seconds = request_seconds
        self._loaded: Setting | None = None

    def load(self, setting: Setting, *, afresh: bool = False) -> None:
        """Has the model in this setting; raises NotLoaded. `afresh` registers it as its file says, from nothing."""
        if self._loaded == setting and not afresh:
            return
        try:
            if self._loaded is None or afresh or not self._can_change(self._loaded, setting):
                self.unload()
                self._register(setting)
            else:
                self._client.scale(
                    self._target.model,
                    setting.workers,
                    setting.workers,
                    batch_size=setting.batch_size,
                    max_batch_delay=setting.batch_delay,
                    timeout=self._load_seconds,
                )
        except TorchdError as error:
            self._loaded = setting  # a half of it may be there
            reason = self._reason(error)
            self.unload()
            raise NotLoaded(reason) from error
        self._loaded = setting

    def unload(self) -> None:
        """Has no model."""
        if self._loaded is None:
            return
        self._loaded = None
        try:
            self._client.unregister(self._target.model)
        except Unavailable as error:
            raise TuneFailed(f"the daemon is gone: {error.message}") from error
        except TorchdError:  # it was never there, or went with its workers
            return

    def ask(self, at_once: int, count: int = 0) -> list[bytes]:
        """The answers to the first inputs (0: to all), so many asked at the same time; raises RequestsFailed."""
        bodies = [item.body for item in self._target.inputs[: count or None]]

        def one(body: bytes) -> bytes:
            return self._client.predict(self._target.model, body, timeout=self._request_seconds)

        threads = ThreadPoolExecutor(max(1, min(at_once, len(bodies))))
        try:
            return list(threads.map(one, bodies))
        except TorchdError as error:
            raise RequestsFailed(_short(error.message)) from error
        finally:
            # Not waited for: after Ctrl-C what is still asked ends with the client.
            threads.shutdown(wait=False, cancel_futures=True)

    def measure(self, clients: int, seconds: float, slo: Slo) -> Run:
        """A closed loop of so many clients for so long; raises RequestsFailed."""
        load = Load(clients=clients, seconds=seconds, warmup_seconds=_WARMUP * seconds, timeout=self._request_seconds)
        found = run_load(self._target, load)
        if found.failed:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in found.errors.items())
            raise RequestsFailed(_short(f"{found.failed} of {found.failed + found.answered} requests: {reasons}"))
        if not found.answered:
            raise RequestsFailed(f"no answer within {seconds:g} s")
        # What has not come by the end is not among the latencies. Where that is much, the mean that follows from the
        # throughput (Little's law) is nearer to the truth.
        least = 1000 * clients / found.throughput if found.answered < _FEW * clients else 0.0
        p50, p99, bounded = (max(found.percentile_ms(percent), least) for percent in (50, 99, slo.percent))
        return Run(clients, found.answered, found.seconds, found.throughput, p50, p99, bounded)

    def describe(self) -> ModelDescription:
        """What the daemon says of the model."""
        return self._client.describe(self._target.model)[0]

    def most_workers(self) -> int:
        """How many workers like those that live there is memory for; 0 where that is not known."""
        workers = self.describe().workers
        each = max((worker.memory_usage for worker in workers), default=0)
        if not each:
            return 0
        free = psutil.virtual_memory().available + each * len(workers)
        return max(1, int(_OF_THE_MEMORY * free / each))

    def _can_change(self, here: Setting, there: Setting) -> bool:
        """Whether workers that live can come to the other setting and serve as if they had been started in it."""
        if (here.family, here.threads) != (
            there.family,
            there.threads,
        ) or _LOADED_FOR_A_SIZE & self._variants.config.keys():
            return False
        # Compiled code knows its batches and its threads.
        return not there.compile

    def _register(self, setting: Setting) -> None:
        self._loaded = setting
        self._client.register(
            self._variants.write(setting),
            model_name=self._target.model,
            initial_workers=setting.workers,
            startup_timeout=int(self._load_seconds),
            timeout=self._load_seconds + 5,
        )

    def _reason(self, error: TorchdError) -> str:
        """The daemon's words, and of a worker's failure its exception."""
        if isinstance(error, Unavailable) and not error.reason:
            raise TuneFailed(f"the daemon is gone: {error.message}") from error
        try:
            described = self.describe()
        except TorchdError:
            return _short(error.message)
        if described.HasField("last_failure") and described.last_failure.message:
            return _short(described.last_failure.message)
        return _short(error.message)


def optimization_of(described: ModelDescription) -> Mapping[str, Any]:
    """What the worker says of its `optimize` entry and of its own check; empty where it says nothing."""
    if not described.HasField("optimization"):
        return {}
    return MessageToDict(
        described.optimization, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON else f"{line[:_REASON]}..."
