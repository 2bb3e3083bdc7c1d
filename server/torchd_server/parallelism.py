"""What model-config.yaml says of models split over several processes: what cannot be served, and what has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchd_server import errors
from torchd_server.settings import TORCHRUN_KEYS, ModelSettings

# What steers the meeting of processes that torchrun starts, and its restarts; ours are started together or not at all.
_RENDEZVOUS = (
    "rdzv-backend",
    "rdzv-endpoint",
    "rdzv-conf",
    "rdzv-id",
    "monitor-interval",
    "node-rank",
    "max-restarts",
    "master-addr",
    "master-port",
)
# Where every rank is called with the rows of the leader: there the ranks have to agree on what runs together.
_SAME_ROWS = ("tp", "pptp")


def check(settings: ModelSettings, config: Mapping[str, Any]) -> list[str]:
    """Raises ArchiveInvalid where the model cannot be served so; else gives one sentence for each key of no effect."""
    torchrun = config.get("torchrun")
    given = torchrun if isinstance(torchrun, Mapping) else {}
    kind = settings.parallel_type
    if settings.async_communication and kind in _SAME_ROWS:
        raise errors.ArchiveInvalid(
            f"parallelType {kind} cannot go with asyncCommunication: that calls the handler with each request by "
            "itself, and ranks must be called together. Use parallelType custom, one process that is lent all "
            "devices, or continuousBatching"
        )
    nodes = given.get("nnodes")
    if kind and type(nodes) is int and nodes > 1:
        raise errors.ArchiveInvalid(
            f"torchrun.nnodes {nodes}: a worker runs on one machine; take nnodes 1 and a parallelLevel that fits on it"
        )
    return [*_without_effect(settings, torchrun), *_of_torchrun(given, bool(kind))]


def _without_effect(settings: ModelSettings, torchrun: object) -> list[str]:
    said = []
    if torchrun is not None and not isinstance(torchrun, Mapping):
        said.append(f"torchrun: {torchrun!r} will not do (expected a mapping) and is not read")
    if settings.parallel_type and not settings.parallel_level:
        said.append(
            f"parallelType {settings.parallel_type} has no effect without parallelLevel: one process, one device"
        )
    if settings.parallel_level and not settings.parallel_type:
        said.append(
            f"parallelLevel {settings.parallel_level} has no effect without parallelType: one process runs the model"
        )
    return said


def _of_torchrun(given: Mapping[str, Any], is_parallel: bool) -> list[str]:
    said = []
    steering = [key for key in _RENDEZVOUS if key in given]
    if steering:
        said.append(f"torchrun: {', '.join(steering)} not read: the ranks are started without torchrun's rendezvous")
    unknown = [str(key) for key in given if key not in {*_RENDEZVOUS, *TORCHRUN_KEYS, "nnodes"}]
    if unknown:
        said.append(f"torchrun: {', '.join(unknown)} not known; known are nnodes, {', '.join(TORCHRUN_KEYS)}")
    if "nnodes" in given and type(given["nnodes"]) is not int:
        said.append(f"torchrun.nnodes: {given['nnodes']!r} will not do (expected a whole number), 1 is taken")
    if given and not is_parallel:
        said.append("torchrun starts nothing without parallelType: one process runs the model")
    return said
