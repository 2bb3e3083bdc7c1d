"""Every setting of the daemon and of one model version: frozen values, built once in start.py and handed down.

A default is written once, here; the command line, the documentation and the tests read it from here.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SettingInvalid(ValueError):
    """A setting's value will not do; the message names the key, the value and what would do."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        self.key, self.value, self.expected = key, value, expected
        super().__init__(f"{key}: {value!r} will not do; expected {expected}")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How one version of a model is served. Times in seconds unless the name says otherwise."""

    min_workers: int = 0
    max_workers: int = 0
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    batch_wait: str = "adaptive"
    response_timeout: int = 120
    startup_timeout: int = 120
    job_queue_size: int = 100
    device_type: str = ""
    device_ids: tuple[int, ...] = ()
    worker_threads: int = 0
    handler: str = ""
    runtime: str = "python"

    def __post_init__(self) -> None:
        """Checks every value against its row of the table."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SettingInvalid(name, value, f"a whole number from {low} to {high}")
        if not isinstance(self.device_ids, tuple) or not all(type(device) is int for device in self.device_ids):
            raise SettingInvalid("device_ids", self.device_ids, "a list of whole numbers")
        if self.max_workers < self.min_workers:
            raise SettingInvalid("max_workers", self.max_workers, f"at least min_workers, which is {self.min_workers}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingInvalid(name, getattr(self, name), " or ".join(repr(choice) for choice in choices))


_RANGES = {
    "min_workers": (0, 64),
    "max_workers": (0, 64),
    "batch_size": (1, 1024),
    "max_batch_delay_ms": (0, 60_000),
    "response_timeout": (1, 86_400),
    "startup_timeout": (1, 86_400),
    "job_queue_size": (1, 100_000),
    "worker_threads": (0, 1024),
}
_CHOICES = {
    "batch_wait": ("adaptive", "full"),
    "device_type": ("", "cpu", "gpu"),
    "runtime": ("python", "python3"),
}

# model-config.yaml's keys that the daemon reads; the rest is the handler's.
MODEL_CONFIG_KEYS = {
    "minWorkers": "min_workers",
    "maxWorkers": "max_workers",
    "batchSize": "batch_size",
    "maxBatchDelay": "max_batch_delay_ms",
    "batchWait": "batch_wait",
    "responseTimeout": "response_timeout",
    "startupTimeout": "startup_timeout",
    "jobQueueSize": "job_queue_size",
    "deviceType": "device_type",
    "deviceIds": "device_ids",
    "workerThreads": "worker_threads",
}


def merge_model_settings(
    defaults: ModelSettings, config_file: Mapping[str, Any], call: Mapping[str, Any]
) -> ModelSettings:
    """One version's settings: server defaults < model-config.yaml < the register call (None stands for not given).

    A model that declares `compiledBatchSize` runs at that size only: it waits for full batches unless told otherwise.
    """
    values: dict[str, Any] = {}
    compiled = config_file.get("compiledBatchSize")
    if compiled is not None:
        values |= {"batch_size": compiled, "batch_wait": "full"}
    for key, name in MODEL_CONFIG_KEYS.items():
        if config_file.get(key) is not None:
            value = config_file[key]
            values[name] = tuple(value) if isinstance(value, list) else value
    values |= {name: value for name, value in call.items() if value is not None}
    least = values.get("min_workers", defaults.min_workers)
    if "max_workers" not in values and isinstance(least, int):
        values["max_workers"] = max(least, defaults.max_workers)
    return replace(defaults, **values)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, one request or one model may take. Sizes in bytes, times in seconds."""

    request_bytes: int = 16 * 1024 * 1024
    response_bytes: int = 64 * 1024 * 1024
    metadata_bytes: int = 16 * 1024
    part_names: int = 64 * 1024
    management_bytes: int = 64 * 1024
    # gRPC resets the calls above it without a reason, so it must be more than one channel has at once in good faith;
    # the queue's limit refuses with one.
    streams_per_connection: int = 4096
    connections: int = 10_000
    models: int = 1000
    versions_per_model: int = 32
    drain_grace: float = 30.0
    unload_grace: float = 30.0

    def __post_init__(self) -> None:
        """Refuses what is no limit."""
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not 0 <= value < math.inf:  # also refuses what is not a number
                raise SettingInvalid(limit.name, value, "a number from 0 up")


@dataclass(frozen=True, slots=True)
class Address:
    """Where one API listens. Port 0 takes any free one."""

    host: str
    port: int

    def __post_init__(self) -> None:
        """Checks the port."""
        if not 0 <= self.port <= 65_535:
            raise SettingInvalid("port", self.port, "a number from 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: whatever it stands for
            return False

    def __str__(self) -> str:
        """As gRPC and browsers write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where the daemon listens."""

    grpc_inference: Address = Address(LOOPBACK, 7070)
    grpc_management: Address = Address(LOOPBACK, 7071)
    inference: Address = Address(LOOPBACK, 8080)
    management: Address = Address(LOOPBACK, 8081)
    metrics: Address = Address(LOOPBACK, 8082)
    metrics_enabled: bool = True

    def __post_init__(self) -> None:
        """Refuses what other machines could reach: there are no tokens yet."""
        for name in API_NAMES:
            address: Address = getattr(self, name)
            if not address.is_loopback:
                raise SettingInvalid(
                    name, str(address), "a loopback address: without tokens torchd serves this machine only"
                )

    def at(self, name: str, address: Address) -> Listeners:
        """These, with one API elsewhere."""
        moved: dict[str, Any] = {name: address}
        return replace(self, **moved)


API_NAMES = ("grpc_inference", "grpc_management", "inference", "management", "metrics")


@dataclass(frozen=True, slots=True)
class Posture:
    """What differs between `torchd serve` (secure) and `torchserve` (TorchServe 0.12's own defaults)."""

    name: str
    model_api: bool
    reflection: bool
    # Names of the environment variables a worker may see, as one regular expression; None passes everything on.
    worker_environment: str | None
    # Workers a model gets at start when nothing names a number; None means one per GPU, else one per core.
    workers_at_start: int | None
    limits: Limits


_WORKER_ENVIRONMENT = (
    r"PATH|HOME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|USER|VIRTUAL_ENV|XDG_CACHE_HOME|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    r"|(OMP|MKL|KMP|GOMP|OPENBLAS|NUMEXPR|TORCH|TORCHINDUCTOR|PYTORCH|PYTHON|CUDA|NVIDIA|NCCL|NEURON|TORCHD)_?.*"
    r"|(HF|TRANSFORMERS|TOKENIZERS)_(?!.*TOKEN$).*|TOKENIZERS_PARALLELISM|ROCR_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES"
)

POSTURES = {
    "torchd": Posture("torchd", True, True, _WORKER_ENVIRONMENT, 1, Limits()),
    "torchserve": Posture(
        "torchserve", False, True, None, None, Limits(request_bytes=6_553_500, response_bytes=6_553_500)
    ),
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything the daemon is told when it starts."""

    posture: Posture = POSTURES["torchd"]
    listeners: Listeners = Listeners()
    limits: Limits = Limits()
    model_defaults: ModelSettings = ModelSettings()
    model_store: Path | None = None
    models: tuple[str, ...] = ()
    run_dir: Path = Path("torchd-run")
    model_api: bool = True
    decode_input: bool = True
    limit_image_pixels: bool = True
    # Compute threads of each worker; 0 divides this process's cores among all workers.
    worker_threads: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def check_name(what: str, name: str) -> str:
    """`name` if it may name a model or a version; SettingInvalid otherwise."""
    if not NAME.fullmatch(name):
        raise SettingInvalid(
            what, name[:200], "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"
        )
    return name
