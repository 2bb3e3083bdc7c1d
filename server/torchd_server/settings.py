"""Every setting of the daemon and of one model version: frozen values, built once in start.py and handed down.

A default is written once, here; the command line, the documentation and the tests read it from here.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
    # What inputs of like size are batched together by; "" is what the handler says, "none" the order of arrival.
    batch_cost: str = ""
    # Longest input x requests of such a batch, at most; 0 sets no limit.
    batch_cost_budget: int = 0
    # Requests that have waited so long are passed over only by others that have.
    batch_cost_delay_ms: int = 10_000
    response_timeout: int = 120
    startup_timeout: int = 120
    job_queue_size: int = 100
    device_type: str = ""
    device_ids: tuple[int, ...] = ()
    worker_threads: int = 0
    handler: str = ""
    runtime: str = "python"
    continuous_batching: bool = False
    sequence_batching: bool = False
    async_communication: bool = False
    use_job_ticket: bool = False
    use_venv: bool = False
    client_timeout_ms: int = 0
    max_retry_timeout: int = 300
    sequence_max_idle_ms: int = 0
    sequence_timeout_ms: int = 0
    max_num_sequence: int = 1
    max_sequence_job_queue_size: int = 1
    # How one worker's model is split over processes, and over how many: pp, tp and pptp start that many ranks; custom
    # is one process that is lent as many devices.
    parallel_type: str = ""
    parallel_level: int = 0
    # Cores of its device type that one process has to itself: NeuronCores (0 means one) or CPU cores (0 pins none).
    cores_per_worker: int = 0

    @property
    def ranks(self) -> int:
        """Processes that are one worker together."""
        return max(1, self.parallel_level) if self.parallel_type in RANKED else 1

    @property
    def devices_per_worker(self) -> int:
        """GPUs that one worker is lent."""
        return max(1, self.parallel_level) if self.parallel_type else 1

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
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise SettingInvalid(name, getattr(self, name), "true or false")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingInvalid(name, getattr(self, name), " or ".join(repr(choice) for choice in choices))


_RANGES = {
    "min_workers": (0, 64),
    "max_workers": (0, 64),
    "batch_size": (1, 1024),
    "max_batch_delay_ms": (0, 60_000),
    "batch_cost_budget": (0, 2**48),
    "batch_cost_delay_ms": (0, 86_400_000),
    "response_timeout": (1, 86_400),
    "startup_timeout": (1, 86_400),
    "job_queue_size": (1, 100_000),
    "worker_threads": (0, 1024),
    "client_timeout_ms": (0, 86_400_000),
    "max_retry_timeout": (0, 86_400),
    "sequence_max_idle_ms": (0, 86_400_000),
    "sequence_timeout_ms": (0, 86_400_000),
    "max_num_sequence": (1, 100_000),
    "max_sequence_job_queue_size": (1, 100_000),
    "parallel_level": (0, 1024),
    "cores_per_worker": (0, 1024),
}
# Kinds of model parallelism with several processes.
RANKED = ("pp", "tp", "pptp")
_SWITCHES = ("continuous_batching", "sequence_batching", "async_communication", "use_job_ticket", "use_venv")
# Rules by which a batch waits; plug-ins may add theirs (plugins.py).
BATCH_WAITS = ["adaptive", "full"]
_CHOICES: dict[str, Sequence[str]] = {
    "batch_wait": BATCH_WAITS,
    "batch_cost": ("", "tokens", "pixels", "bytes", "none"),
    "device_type": ("", "cpu", "gpu", "neuron"),
    "runtime": ("python", "python3"),
    "parallel_type": ("", "pp", "tp", "pptp", "custom"),
}

# model-config.yaml's keys that the daemon reads; the rest is the handler's.
MODEL_CONFIG_KEYS = {
    "minWorkers": "min_workers",
    "maxWorkers": "max_workers",
    "batchSize": "batch_size",
    "maxBatchDelay": "max_batch_delay_ms",
    "batchWait": "batch_wait",
    "batchCost": "batch_cost",
    "batchCostBudget": "batch_cost_budget",
    "batchCostDelay": "batch_cost_delay_ms",
    "responseTimeout": "response_timeout",
    "startupTimeout": "startup_timeout",
    "jobQueueSize": "job_queue_size",
    "deviceType": "device_type",
    "deviceIds": "device_ids",
    "workerThreads": "worker_threads",
    "continuousBatching": "continuous_batching",
    "sequenceBatching": "sequence_batching",
    "asyncCommunication": "async_communication",
    "useJobTicket": "use_job_ticket",
    "useVenv": "use_venv",
    "clientTimeoutInMills": "client_timeout_ms",
    "maxRetryTimeoutInSec": "max_retry_timeout",
    "sequenceMaxIdleMSec": "sequence_max_idle_ms",
    "sequenceTimeoutMSec": "sequence_timeout_ms",
    "maxNumSequence": "max_num_sequence",
    "maxSequenceJobQueueSize": "max_sequence_job_queue_size",
    "parallelType": "parallel_type",
    "parallelLevel": "parallel_level",
    "coresPerWorker": "cores_per_worker",
}
# Keys of its entry `torchrun`, which stand above those of the file itself (torchserve.md 4.1).
TORCHRUN_KEYS = {"nproc-per-node": "parallel_level", "OMP_NUMBER_THREADS": "worker_threads"}


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
    torchrun = config_file.get("torchrun")
    if isinstance(torchrun, Mapping):
        values |= {name: torchrun[key] for key, name in TORCHRUN_KEYS.items() if torchrun.get(key) is not None}
    values |= {name: value for name, value in call.items() if value is not None}
    least = values.get("min_workers", defaults.min_workers)
    if "max_workers" not in values and isinstance(least, int):
        values["max_workers"] = max(least, defaults.max_workers)
    return replace(defaults, **values)


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One registered version as a snapshot keeps it; `source` is what it was registered from."""

    name: str
    version: str
    source: str
    is_default: bool
    settings: ModelSettings


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
    """Where one API listens: a host and a port (0 takes any free one), or the path of a Unix socket."""

    host: str
    port: int
    tls: bool = False
    unix: Path | None = None

    def __post_init__(self) -> None:
        """Checks the port."""
        if not 0 <= self.port <= 65_535:
            raise SettingInvalid("port", self.port, "a number from 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.unix is not None:
            return True
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: whatever it stands for
            return False

    def __str__(self) -> str:
        """As gRPC and browsers write it."""
        if self.unix is not None:
            return f"unix:{self.unix}"
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

    def together(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """These APIs, those of one address together; port 0 is another one each time."""
        groups: dict[Address | str, tuple[str, ...]] = {}
        for name in names:
            address: Address = getattr(self, name)
            place = address if address.port or address.unix is not None else name
            groups[place] = (*groups.get(place, ()), name)
        return list(groups.values())

    def at(self, name: str, address: Address) -> Listeners:
        """These, with one API elsewhere."""
        moved: dict[str, Any] = {name: address}
        return replace(self, **moved)


API_NAMES = ("grpc_inference", "grpc_management", "inference", "management", "metrics")


@dataclass(frozen=True, slots=True)
class Tls:
    """The files TLS needs: a PEM certificate and its key, or a PKCS12 (or JKS) keystore. `client_ca` asks clients for
    certificates of their own."""

    certificate: Path | None = None
    private_key: Path | None = None
    keystore: Path | None = None
    keystore_password: str = "changeit"
    keystore_type: str = "PKCS12"
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whether calls need a token, where the keys are kept (None: in the run directory), and how long they hold."""

    enabled: bool = True
    file: Path | None = None
    lifetime_minutes: float = 60.0


@dataclass(frozen=True, slots=True)
class Cors:
    """What browsers on other sites are told; None sends no such header."""

    origin: str | None = None
    methods: str | None = None
    headers: str | None = None


METRICS_MODES = ("log", "prometheus", "legacy")


@dataclass(frozen=True, slots=True)
class TorchServeMetrics:
    """TorchServe's metrics: where they go and which there are (`config`: a metrics.yaml; None: TorchServe's)."""

    mode: str = "log"
    config: Path | None = None
    auto_detect: bool = False
    system: bool = True
    interval_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Checks the mode and the interval."""
        if self.mode not in METRICS_MODES:
            raise SettingInvalid("metrics_mode", self.mode, " or ".join(METRICS_MODES))
        if not 1 <= self.interval_seconds <= 86_400:
            raise SettingInvalid("metric_time_interval", self.interval_seconds, "seconds from 1 to 86400")


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Folders of TorchServe's log files; None writes none."""

    logs: Path | None = None
    metrics: Path | None = None


@dataclass(frozen=True, slots=True)
class SequenceHeaders:
    """Request headers by which a client says which sequence a request belongs to, where it starts and ends."""

    id: str = "ts_request_sequence_id"
    start: str = "ts_request_sequence_start"
    end: str = "ts_request_sequence_end"


@dataclass(frozen=True, slots=True)
class Posture:
    """What differs between `torchd serve` (secure) and `torchserve` (TorchServe 0.12's own defaults)."""

    name: str
    model_api: bool
    reflection: bool
    # Regular expressions a URL to register from must match in full; none: only the model store.
    allowed_urls: tuple[str, ...]
    # Names of the environment variables a worker may see, as one regular expression; None passes everything on.
    worker_environment: str | None
    # Workers a model gets at start when nothing names a number; None means one per GPU, else one per core.
    workers_at_start: int | None
    limits: Limits
    # A key of model-config.yaml whose value will not do is ignored with a warning, as in TorchServe; else refused.
    lenient_model_config: bool = False
    # Where TorchServe's metrics go (metrics_mode), and whether /metrics has the torchd_* families in every mode.
    metrics_mode: str = "prometheus"
    own_metrics: bool = True
    # Whether an allowed URL may lead to an address of a private network, or on to another allowed URL.
    private_urls: bool = False


_WORKER_ENVIRONMENT = (
    r"(?!.*(TOKEN|SECRET|PASSWORD|KEY)$)(PATH|HOME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|USER|VIRTUAL_ENV|XDG_CACHE_HOME|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    r"|(OMP|MKL|KMP|GOMP|OPENBLAS|NUMEXPR|TORCH|TORCHINDUCTOR|PYTORCH|PYTHON|CUDA|NVIDIA|NCCL|NEURON|TORCHD)_?.*"
    r"|(HF|TRANSFORMERS|TOKENIZERS)_.*|ROCR_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES)"
)

POSTURES = {
    "torchd": Posture("torchd", True, True, (), _WORKER_ENVIRONMENT, 1, Limits()),
    "torchserve": Posture(
        "torchserve",
        False,
        True,
        ("file://.*", "http(s)?://.*"),
        None,
        None,
        Limits(request_bytes=6_553_500, response_bytes=6_553_500),
        lenient_model_config=True,
        metrics_mode="log",
        own_metrics=False,
        private_urls=True,
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
    tls: Tls = Tls()
    grpc_tls: bool = False
    # Addresses that other machines reach, without tokens and TLS, are the operator's own wish.
    insecure_listen: bool = False
    tokens: Tokens = Tokens()
    cors: Cors = Cors()
    torchserve_metrics: TorchServeMetrics = TorchServeMetrics()
    log_files: LogFiles = LogFiles()
    sequence_headers: SequenceHeaders = SequenceHeaders()
    workflow_store: Path | None = None
    allowed_urls: tuple[str, ...] = ()
    # Whether requirements.txt of an archive is installed, into a folder or virtual environment of its model.
    install_dependencies: bool = False
    # Handler of archives that name none, and the envelope around every handler's input.
    default_handler: str = ""
    service_envelope: str = ""
    # Workers of a model that is loaded at start; None takes the posture's.
    workers_at_start: int | None = None
    # GPUs to use at most; None takes all.
    gpus: int | None = None
    # Settings of models by name and version, as `models` of config.properties gives them.
    model_settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    # Where snapshots of the registered models go; None keeps none. `snapshot` is the one to start from.
    snapshots: Path | None = None
    snapshot: Mapping[str, Any] | None = None
    unregister_timeout: int = 120
    open_inference: bool = True
    # Installed plug-ins to load, by the names of their entry points; none is loaded unasked.
    plugins: tuple[str, ...] = ()
    # gRPC connections are closed after so many seconds, their calls after so many more; None never.
    grpc_connection_age: float | None = None
    grpc_connection_grace: float | None = None
    # Compute threads of each worker; 0 divides this process's cores among all workers.
    worker_threads: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    # Environment variables whose names match in full are kept from workers.
    hidden_environment: str = ""
    # config.properties and the flags that stand for its keys, as given: snapshots repeat them.
    properties: Mapping[str, str] = field(default_factory=dict)


def check_name(what: str, name: str) -> str:
    """`name` if it may name a model or a version; SettingInvalid otherwise."""
    if not NAME.fullmatch(name):
        raise SettingInvalid(
            what, name[:200], "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"
        )
    return name
