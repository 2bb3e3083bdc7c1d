"""One setting tried: loaded, its answers compared, measured under as many clients as the bound allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol

from torchd_clients.tune.answers import difference
from torchd_clients.tune.outcome import Fate, Run, Trial
from torchd_clients.tune.served import NotLoaded, RequestsFailed, optimization_of
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import CHOICES, Setting
from torchd_protos.management_pb2 import ModelDescription

# Enough for a batch to run and one to wait in front of each worker.
_BATCHES_AT_ONCE = 2
# Loads of one trial, each with fewer clients where the one before was over the bound.
_LOADS = 4
# What it aims at then: just below the bound.
_AIM = 0.95
# What a worker ends with that finds, when it loads, that its optimised model answers otherwise.
_CHECK_FAILED = "AnswersChange"
MEBIBYTE = 2**20


class Server(Protocol):
    """What `Served` can."""

    def load(self, setting: Setting, *, afresh: bool = False) -> None:
        """Has the model in this setting."""

    def ask(self, at_once: int, count: int = 0) -> list[bytes]:
        """The answers to the first inputs, 0: to all."""

    def measure(self, clients: int, seconds: float, slo: Slo) -> Run:
        """A closed loop."""

    def describe(self) -> ModelDescription:
        """What the daemon says of the model."""


class Examiner:
    """Tries settings. `reference` are the default's answers; without them only the worker's own check speaks."""

    def __init__(
        self, server: Server, slo: Slo, reference: Sequence[bytes], clock: Callable[[], float] = monotonic
    ) -> None:
        self._server = server
        self._slo = slo
        self._reference = reference
        self._clock = clock
        self._compared: set[tuple[object, ...]] = set()

    def examine(self, setting: Setting, rung: int, seconds: float, clients: int = 0, *, afresh: bool = False) -> Trial:
        """The trial of a setting. `clients` is where to begin where an earlier trial knows; `afresh` loads it anew."""
        began = self._clock()
        trial = self._examine(Trial(setting, rung, Fate.MEASURED), seconds, clients, afresh)
        return replace(trial, took_seconds=self._clock() - began)

    def _examine(self, trial: Trial, seconds: float, clients: int, afresh: bool) -> Trial:
        setting = trial.setting
        try:
            self._server.load(setting, afresh=afresh)
            described = self._server.describe()
        except NotLoaded as error:
            fate = Fate.DIFFERS if _CHECK_FAILED in str(error) else Fate.NOT_LOADED
            return replace(trial, fate=fate, reason=str(error))
        report = optimization_of(described)
        trial = replace(trial, optimization=report, memory_mib=_memory(described))
        if refused := refusal(setting, report):
            return replace(trial, fate=Fate.NOT_LOADED, reason=refused)
        clients = clients or _BATCHES_AT_ONCE * setting.workers * setting.batch_size
        clients = max(1, min(clients, described.remaining_capacity or clients))
        try:
            if differs := self._compare(setting, clients, afresh):
                return replace(trial, fate=Fate.DIFFERS, reason=differs)
            return replace(trial, runs=self._measure(clients, seconds))
        except RequestsFailed as error:
            return replace(trial, fate=Fate.FAILED, reason=str(error))

    def _compare(self, setting: Setting, clients: int, afresh: bool) -> str:
        """What differs from the default's answers. Once for what computes alike, in batches and one by one."""
        key = (setting.family, setting.threads, setting.batch_size > 1)
        if not self._reference or (key in self._compared and not afresh):
            return ""
        # As many at once as will be: answers out of batches are what is going to be given.
        found = difference(self._reference, self._server.ask(clients, len(self._reference)))
        if not found:
            self._compared.add(key)
        return found

    def _measure(self, clients: int, seconds: float) -> tuple[Run, ...]:
        runs: list[Run] = []
        while len(runs) < _LOADS:
            run = self._server.measure(clients, seconds, self._slo)
            runs.append(run)
            if run.bounded_ms <= self._slo.bound_ms or clients == 1:
                break
            # In a closed loop the time of an answer grows with the clients that wait for one.
            clients = max(1, min(clients - 1, int(clients * _AIM * self._slo.bound_ms / run.bounded_ms)))
        return tuple(runs)


def refusal(setting: Setting, report: Mapping[str, Any]) -> str:
    """What of this setting the worker did not apply, by its report; "" where it did everything."""
    wanted = [name for name in CHOICES if getattr(setting, name)]
    for option in report.get("options", ()):
        if option.get("name") in wanted and not option.get("applied", True):
            return f"{option['name']} is not applied: {option.get('detail') or 'the worker does not say why'}"
    return ""


def _memory(described: ModelDescription) -> float:
    return sum(worker.memory_usage for worker in described.workers) / MEBIBYTE
