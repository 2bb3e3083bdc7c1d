"""TorchServe's sentences and JSON documents, as its clients parse them (reference section 2.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchd_server.accelerators.base import Device
from torchd_server.accelerators.kinds import ACCELERATORS
from torchd_server.management import ModelChange, ModelPage
from torchd_server.model import RankStatus, VersionStatus, WorkerStatus

PROCESSING = "Processing worker updates..."
UNREADABLE = "the worker's report cannot be read"


def registered(change: ModelChange) -> str:
    """The sentence of a registered model."""
    subject = f'Model "{change.model}" Version: {change.version} registered with'
    if not change.done:
        return PROCESSING
    if change.wanted == 0:
        return f"{subject} 0 initial workers. Use scale workers API to add workers for the model."
    return f"{subject} {change.wanted} initial workers"


def scaled(change: ModelChange) -> str:
    """The sentence of a scaled model."""
    if not change.done:
        return PROCESSING
    if change.ready < change.wanted:
        return "Workers scaling in progress..."
    version = f", version: {change.version}" if change.version_was_given else ""
    return f"Workers scaled to {change.wanted} for model: {change.model}{version}"


def reconfigured(change: ModelChange, changes: Mapping[str, Any]) -> str:
    """The sentence of changed settings; TorchServe has none."""
    version = f", version: {change.version}" if change.version_was_given else ""
    told = ", ".join(f"{name}={value}" for name, value in changes.items())
    return f"Settings changed for model: {change.model}{version}: {told}"


def default_set(change: ModelChange) -> str:
    """The sentence of a new default version."""
    return f'Default version successfully updated for model "{change.model}" to "{change.version}"'


def unregistered(change: ModelChange) -> str:
    """The sentence of a removed model."""
    return f'Model "{change.model}" unregistered'


def document(value: Any) -> str:
    """JSON as TorchServe prints it: two spaces, a line end."""
    return json.dumps(value, indent=2) + "\n"


def page(models: ModelPage) -> dict[str, Any]:
    """The document of a list."""
    rows = [{"modelName": model.name, "modelUrl": model.url} for model in models.models]
    token = {} if models.next_token is None else {"nextPageToken": str(models.next_token)}
    return {**token, "models": rows}


def descriptions(versions: Sequence[VersionStatus]) -> list[dict[str, Any]]:
    """The document of a description: TorchServe's keys in its order, then `batchWait`, `state` and `lastFailure`."""
    return [_description(version) for version in versions]


def _description(status: VersionStatus) -> dict[str, Any]:
    settings = status.settings
    found: dict[str, Any] = {
        "modelName": status.name,
        "modelVersion": status.version,
        # A function of a workflow has no archive.
        **({"modelUrl": status.source} if status.source else {}),
        "runtime": settings.runtime,
        "minWorkers": settings.min_workers,
        "maxWorkers": settings.max_workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": settings.max_batch_delay_ms,
        "responseTimeout": settings.response_timeout,
        "startupTimeout": settings.startup_timeout,
        "maxRetryTimeoutInSec": settings.max_retry_timeout,
        "clientTimeoutInMills": settings.client_timeout_ms,
        "parallelType": settings.parallel_type,
        "parallelLevel": settings.parallel_level,
        "deviceType": status.device_type,
        "continuousBatching": settings.continuous_batching,
        "useJobTicket": settings.use_job_ticket,
        "useVenv": settings.use_venv,
        "stateful": settings.sequence_batching,
        "sequenceMaxIdleMSec": settings.sequence_max_idle_ms,
        "sequenceTimeoutMSec": settings.sequence_timeout_ms,
        "maxNumSequence": settings.max_num_sequence if settings.sequence_batching else 0,
        "maxSequenceJobQueueSize": settings.max_sequence_job_queue_size if settings.sequence_batching else 0,
        "loadedAtStartup": status.loaded_at_startup,
        "workers": [_worker(worker) for worker in status.workers if worker.name],
        "jobQueueStatus": {"remainingCapacity": status.remaining, "pendingRequests": status.pending},
        "batchWait": settings.batch_wait,
        "state": status.state.value.upper(),
    }
    if status.optimization_json:
        found["optimization"] = optimization(status.optimization_json)
    if status.last_failure is not None:
        found["lastFailure"] = failure(status)
    return found


def optimization(optimization_json: str) -> dict[str, Any]:
    """What `optimize:` did to the model."""
    try:
        told = json.loads(optimization_json)
        return {"options": [_option(option) for option in told["options"]], **_given(told, "unchecked", "warnings")}
    except (ValueError, TypeError, LookupError, RecursionError):  # a worker runs user code, which may have said it
        return {"unchecked": UNREADABLE}


def _option(option: dict[str, Any]) -> dict[str, Any]:
    difference = option["difference"]
    if difference is None:
        return _given(option, "name", "asked", "applied", "detail")
    named = {
        "inputs": difference["inputs"],
        "maxDifference": difference["max_difference"],
        "standardDeviation": difference["standard_deviation"],
        "ratio": difference["ratio"],
        **({} if difference["equal_top1"] is None else {"equalTop1": difference["equal_top1"]}),
        "top1Judged": difference["top1_judged"],
    }
    return {**_given(option, "name", "asked", "applied", "detail"), "difference": named}


def _given(told: dict[str, Any], *names: str) -> dict[str, Any]:
    """These entries, without empty texts and lists."""
    return {name: told[name] for name in names if told[name] not in ("", [])}


def failure(status: VersionStatus) -> dict[str, Any]:
    """The last failure of a version's workers."""
    last = status.last_failure
    if last is None:
        return {}
    return {
        "worker": last.worker,
        "time": timestamp(last.at),
        "kind": type(last.error).__name__,
        "message": str(last.error),
        "traceback": getattr(last.error, "traceback", ""),
        "stderr": list(last.stderr),
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "id": worker.name,
        "startTime": timestamp(worker.started_at),
        "status": "READY" if worker.state == "ready" else "UNLOADING",
        "memoryUsage": worker.memory_bytes,
        "pid": worker.pid,
        "gpu": worker.gpu is not None,
        "gpuUsage": "N/A" if worker.gpu is None else f"gpuId::{worker.gpu}",
        "state": worker.state.upper(),
        "threads": worker.threads,
        **({"devices": [_device(device) for device in worker.devices]} if worker.devices else {}),
        **({"ranks": [_rank(rank) for rank in worker.ranks]} if len(worker.ranks) > 1 else {}),
    }


def _rank(rank: RankStatus) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "pid": rank.pid,
        "state": rank.state.upper(),
        "progress": rank.progress,
        "devices": [_device(device) for device in rank.devices],
    }


def _device(device: Device) -> dict[str, Any]:
    return {"deviceType": ACCELERATORS[device.accelerator].device_type, "index": device.index, "id": device.identity}


def timestamp(moment: Any) -> str:
    """`yyyy-MM-ddTHH:mm:ss.SSSZ`, in UTC as the Z says."""
    if moment is None:
        return ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
