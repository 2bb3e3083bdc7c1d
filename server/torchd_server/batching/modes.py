"""Which policy a model's settings ask for: its queue times its turn."""

from __future__ import annotations

import math
from collections.abc import Callable

from torchd_server.batching.base import Policy
from torchd_server.batching.by_cost import ByCost, CostLimits
from torchd_server.batching.costs import KEYS, cost_by
from torchd_server.batching.policy import BatchPolicy
from torchd_server.batching.queues import Fifo, Queue
from torchd_server.batching.sequences import SequenceLimits, SequencePolicy
from torchd_server.batching.turns import EachStep, FreeRunning, Turn, WholeBatch
from torchd_server.batching.waits import WAITS, BatchWait, NoWait
from torchd_server.clock import Clock
from torchd_server.settings import ModelSettings, SequenceHeaders

# A client that never comes back, or never learned its sequence's id, must not keep a place for ever.
IDLE_MS = 600_000


def policy_for(settings: ModelSettings, clock: Clock, headers: SequenceHeaders, model: tuple[str, str]) -> Policy:
    """The policy of one model version; `model` is its name and version."""
    turn, wait = _turn(settings), _wait(settings)
    if not settings.sequence_batching:
        queue = _queue(settings, settings.batch_cost, clock)
        return BatchPolicy(queue, settings.batch_size, settings.job_queue_size, wait(), clock, turn)
    limits = SequenceLimits(
        settings.max_num_sequence,
        settings.max_sequence_job_queue_size,
        _seconds(settings.sequence_max_idle_ms or IDLE_MS),
        _seconds(settings.sequence_timeout_ms),
    )
    size, limit = settings.batch_size, settings.job_queue_size
    return SequencePolicy(limits, size, limit, wait, clock, turn, headers, model)


def group_by(policy: Policy, settings: ModelSettings, cost: str, clock: Clock) -> str:
    """Takes a living policy's requests by cost from now on, `cost` if the settings name none; gives what it is."""
    key = settings.batch_cost or cost
    if key not in KEYS or not isinstance(policy, BatchPolicy) or policy.turn.joins:
        return ""
    policy.reorder(_queue(settings, key, clock))
    return key


def _queue(settings: ModelSettings, key: str, clock: Clock) -> Queue:
    if key not in KEYS or _turn(settings).joins or settings.batch_size == 1:  # there is nothing to pad
        return Fifo()
    limits = CostLimits(settings.batch_cost_budget or math.inf, _seconds(settings.batch_cost_delay_ms))
    return ByCost(cost_by(key), limits, clock)


def resize(policy: Policy, settings: ModelSettings) -> None:
    """Serves a living policy's requests by these settings from now on; its kind stays."""
    policy.resize(_turn(settings), settings.batch_size, settings.job_queue_size, _wait(settings))


def _wait(settings: ModelSettings) -> Callable[[], BatchWait]:
    if _turn(settings).joins or settings.batch_size == 1:
        return NoWait
    return lambda: WAITS[settings.batch_wait](settings.max_batch_delay_ms / 1000)


def _turn(settings: ModelSettings) -> Turn:
    if settings.async_communication:  # such a handler decides itself what it runs together
        return FreeRunning(settings.job_queue_size)
    return EachStep(settings.batch_size) if settings.continuous_batching else WholeBatch(settings.batch_size)


def _seconds(milliseconds: int) -> float:
    """0 stands for no limit."""
    return milliseconds / 1000 if milliseconds else math.inf
