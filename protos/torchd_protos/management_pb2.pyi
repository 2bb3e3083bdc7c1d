from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_IDLE: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_STARTING: _ClassVar[WorkerState]
    WORKER_STATE_LOADING: _ClassVar[WorkerState]
    WORKER_STATE_READY: _ClassVar[WorkerState]
    WORKER_STATE_DRAINING: _ClassVar[WorkerState]
    WORKER_STATE_DEAD: _ClassVar[WorkerState]
    WORKER_STATE_BACK_OFF: _ClassVar[WorkerState]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_IDLE: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_DRAINING: ModelState
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_STARTING: WorkerState
WORKER_STATE_LOADING: WorkerState
WORKER_STATE_READY: WorkerState
WORKER_STATE_DRAINING: WorkerState
WORKER_STATE_DEAD: WorkerState
WORKER_STATE_BACK_OFF: WorkerState

class DescribeModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "customized")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CUSTOMIZED_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    customized: bool
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., customized: bool = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("limit", "next_page_token")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    limit: int
    next_page_token: int
    def __init__(self, limit: _Optional[int] = ..., next_page_token: _Optional[int] = ...) -> None: ...

class RegisterModelRequest(_message.Message):
    __slots__ = ("batch_size", "handler", "initial_workers", "max_batch_delay", "model_name", "response_timeout", "runtime", "synchronous", "url", "s3_sse_kms", "startup_timeout")
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    HANDLER_FIELD_NUMBER: _ClassVar[int]
    INITIAL_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_DELAY_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    SYNCHRONOUS_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    S3_SSE_KMS_FIELD_NUMBER: _ClassVar[int]
    STARTUP_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    handler: str
    initial_workers: int
    max_batch_delay: int
    model_name: str
    response_timeout: int
    runtime: str
    synchronous: bool
    url: str
    s3_sse_kms: bool
    startup_timeout: int
    def __init__(self, batch_size: _Optional[int] = ..., handler: _Optional[str] = ..., initial_workers: _Optional[int] = ..., max_batch_delay: _Optional[int] = ..., model_name: _Optional[str] = ..., response_timeout: _Optional[int] = ..., runtime: _Optional[str] = ..., synchronous: bool = ..., url: _Optional[str] = ..., s3_sse_kms: bool = ..., startup_timeout: _Optional[int] = ...) -> None: ...

class ScaleWorkerRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "max_worker", "min_worker", "number_gpu", "synchronous", "timeout", "batch_size", "max_batch_delay", "response_timeout", "job_queue_size", "batch_wait")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_WORKER_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_GPU_FIELD_NUMBER: _ClassVar[int]
    SYNCHRONOUS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_DELAY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    JOB_QUEUE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_WAIT_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    max_worker: int
    min_worker: int
    number_gpu: int
    synchronous: bool
    timeout: int
    batch_size: int
    max_batch_delay: int
    response_timeout: int
    job_queue_size: int
    batch_wait: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., max_worker: _Optional[int] = ..., min_worker: _Optional[int] = ..., number_gpu: _Optional[int] = ..., synchronous: bool = ..., timeout: _Optional[int] = ..., batch_size: _Optional[int] = ..., max_batch_delay: _Optional[int] = ..., response_timeout: _Optional[int] = ..., job_queue_size: _Optional[int] = ..., batch_wait: _Optional[str] = ...) -> None: ...

class SetDefaultRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class UnregisterModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class ManagementResponse(_message.Message):
    __slots__ = ("msg", "models", "summaries", "next_page_token", "change")
    MSG_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    msg: str
    models: _containers.RepeatedCompositeFieldContainer[ModelDescription]
    summaries: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    next_page_token: int
    change: ModelChange
    def __init__(self, msg: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelDescription, _Mapping]]] = ..., summaries: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ..., next_page_token: _Optional[int] = ..., change: _Optional[_Union[ModelChange, _Mapping]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("model_name", "model_url")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_URL_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_url: str
    def __init__(self, model_name: _Optional[str] = ..., model_url: _Optional[str] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("model_name", "model_version", "ready_workers", "wanted_workers", "done")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_WORKERS_FIELD_NUMBER: _ClassVar[int]
    WANTED_WORKERS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    ready_workers: int
    wanted_workers: int
    done: bool
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., ready_workers: _Optional[int] = ..., wanted_workers: _Optional[int] = ..., done: bool = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("model_name", "model_version", "model_url", "runtime", "min_workers", "max_workers", "batch_size", "max_batch_delay", "response_timeout", "startup_timeout", "batch_wait", "loaded_at_startup", "is_default", "state", "workers", "pending_requests", "remaining_capacity", "last_failure", "customized_metadata", "device_type", "optimization")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_URL_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MAX_WORKERS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_DELAY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    STARTUP_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    BATCH_WAIT_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_STARTUP_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PENDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LAST_FAILURE_FIELD_NUMBER: _ClassVar[int]
    CUSTOMIZED_METADATA_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    model_url: str
    runtime: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: int
    response_timeout: int
    startup_timeout: int
    batch_wait: str
    loaded_at_startup: bool
    is_default: bool
    state: ModelState
    workers: _containers.RepeatedCompositeFieldContainer[WorkerDescription]
    pending_requests: int
    remaining_capacity: int
    last_failure: FailureDescription
    customized_metadata: str
    device_type: str
    optimization: OptimizationDescription
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., model_url: _Optional[str] = ..., runtime: _Optional[str] = ..., min_workers: _Optional[int] = ..., max_workers: _Optional[int] = ..., batch_size: _Optional[int] = ..., max_batch_delay: _Optional[int] = ..., response_timeout: _Optional[int] = ..., startup_timeout: _Optional[int] = ..., batch_wait: _Optional[str] = ..., loaded_at_startup: bool = ..., is_default: bool = ..., state: _Optional[_Union[ModelState, str]] = ..., workers: _Optional[_Iterable[_Union[WorkerDescription, _Mapping]]] = ..., pending_requests: _Optional[int] = ..., remaining_capacity: _Optional[int] = ..., last_failure: _Optional[_Union[FailureDescription, _Mapping]] = ..., customized_metadata: _Optional[str] = ..., device_type: _Optional[str] = ..., optimization: _Optional[_Union[OptimizationDescription, _Mapping]] = ...) -> None: ...

class OptimizationDescription(_message.Message):
    __slots__ = ("options", "unchecked", "warnings")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    options: _containers.RepeatedCompositeFieldContainer[OptimizationOption]
    unchecked: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, options: _Optional[_Iterable[_Union[OptimizationOption, _Mapping]]] = ..., unchecked: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class OptimizationOption(_message.Message):
    __slots__ = ("name", "asked", "applied", "detail", "difference")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    asked: str
    applied: bool
    detail: str
    difference: OutputDifference
    def __init__(self, name: _Optional[str] = ..., asked: _Optional[str] = ..., applied: bool = ..., detail: _Optional[str] = ..., difference: _Optional[_Union[OutputDifference, _Mapping]] = ...) -> None: ...

class OutputDifference(_message.Message):
    __slots__ = ("inputs", "max_difference", "standard_deviation", "ratio", "equal_top1", "top1_judged")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    EQUAL_TOP1_FIELD_NUMBER: _ClassVar[int]
    TOP1_JUDGED_FIELD_NUMBER: _ClassVar[int]
    inputs: int
    max_difference: float
    standard_deviation: float
    ratio: float
    equal_top1: float
    top1_judged: bool
    def __init__(self, inputs: _Optional[int] = ..., max_difference: _Optional[float] = ..., standard_deviation: _Optional[float] = ..., ratio: _Optional[float] = ..., equal_top1: _Optional[float] = ..., top1_judged: bool = ...) -> None: ...

class WorkerDescription(_message.Message):
    __slots__ = ("id", "start_time", "state", "pid", "memory_usage", "gpu", "gpu_usage", "threads", "running_requests", "progress", "devices", "ranks")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USAGE_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    GPU_USAGE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    id: str
    start_time: str
    state: WorkerState
    pid: int
    memory_usage: int
    gpu: bool
    gpu_usage: str
    threads: int
    running_requests: int
    progress: str
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReference]
    ranks: _containers.RepeatedCompositeFieldContainer[RankDescription]
    def __init__(self, id: _Optional[str] = ..., start_time: _Optional[str] = ..., state: _Optional[_Union[WorkerState, str]] = ..., pid: _Optional[int] = ..., memory_usage: _Optional[int] = ..., gpu: bool = ..., gpu_usage: _Optional[str] = ..., threads: _Optional[int] = ..., running_requests: _Optional[int] = ..., progress: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[DeviceReference, _Mapping]]] = ..., ranks: _Optional[_Iterable[_Union[RankDescription, _Mapping]]] = ...) -> None: ...

class FailureDescription(_message.Message):
    __slots__ = ("worker_id", "time", "kind", "message", "traceback", "stderr")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    time: str
    kind: str
    message: str
    traceback: str
    stderr: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., time: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., stderr: _Optional[_Iterable[str]] = ...) -> None: ...

class DeviceReference(_message.Message):
    __slots__ = ("device_type", "index", "id")
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    device_type: str
    index: int
    id: str
    def __init__(self, device_type: _Optional[str] = ..., index: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class RankDescription(_message.Message):
    __slots__ = ("rank", "pid", "state", "progress", "devices")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    state: WorkerState
    progress: str
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReference]
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ..., state: _Optional[_Union[WorkerState, str]] = ..., progress: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[DeviceReference, _Mapping]]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "absent")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceDescription]
    absent: _containers.RepeatedCompositeFieldContainer[AbsentAccelerator]
    def __init__(self, devices: _Optional[_Iterable[_Union[DeviceDescription, _Mapping]]] = ..., absent: _Optional[_Iterable[_Union[AbsentAccelerator, _Mapping]]] = ...) -> None: ...

class DeviceDescription(_message.Message):
    __slots__ = ("device_type", "index", "accelerator", "id", "name", "memory_size", "numa_node", "exclusive", "quarantined", "holders")
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    device_type: str
    index: int
    accelerator: str
    id: str
    name: str
    memory_size: int
    numa_node: int
    exclusive: bool
    quarantined: bool
    holders: _containers.RepeatedCompositeFieldContainer[DeviceHolder]
    def __init__(self, device_type: _Optional[str] = ..., index: _Optional[int] = ..., accelerator: _Optional[str] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., memory_size: _Optional[int] = ..., numa_node: _Optional[int] = ..., exclusive: bool = ..., quarantined: bool = ..., holders: _Optional[_Iterable[_Union[DeviceHolder, _Mapping]]] = ...) -> None: ...

class DeviceHolder(_message.Message):
    __slots__ = ("model_name", "model_version", "worker_id", "pid")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    worker_id: str
    pid: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., worker_id: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class AbsentAccelerator(_message.Message):
    __slots__ = ("accelerator", "device_type", "reason")
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accelerator: str
    device_type: str
    reason: str
    def __init__(self, accelerator: _Optional[str] = ..., device_type: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
