from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_HELLO: _ClassVar[Kind]
    KIND_PROGRESS: _ClassVar[Kind]
    KIND_LOADED: _ClassVar[Kind]
    KIND_LOAD_FAILED: _ClassVar[Kind]
    KIND_REPLIES: _ClassVar[Kind]
    KIND_REPLY: _ClassVar[Kind]
    KIND_FAILURE: _ClassVar[Kind]
    KIND_METRIC: _ClassVar[Kind]
    KIND_LOG: _ClassVar[Kind]
    KIND_LOAD: _ClassVar[Kind]
    KIND_SETTINGS: _ClassVar[Kind]
    KIND_BATCH: _ClassVar[Kind]
    KIND_CANCEL: _ClassVar[Kind]
    KIND_CREDIT: _ClassVar[Kind]
    KIND_UNLOAD: _ClassVar[Kind]
    KIND_STEP: _ClassVar[Kind]
    KIND_OUTCOME: _ClassVar[Kind]
    KIND_TASK: _ClassVar[Kind]
    KIND_CALL: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_HELLO: Kind
KIND_PROGRESS: Kind
KIND_LOADED: Kind
KIND_LOAD_FAILED: Kind
KIND_REPLIES: Kind
KIND_REPLY: Kind
KIND_FAILURE: Kind
KIND_METRIC: Kind
KIND_LOG: Kind
KIND_LOAD: Kind
KIND_SETTINGS: Kind
KIND_BATCH: Kind
KIND_CANCEL: Kind
KIND_CREDIT: Kind
KIND_UNLOAD: Kind
KIND_STEP: Kind
KIND_OUTCOME: Kind
KIND_TASK: Kind
KIND_CALL: Kind

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "content_type", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    content_type: str
    size: int
    def __init__(self, name: _Optional[str] = ..., content_type: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("model", "version", "request_id", "headers", "parts", "timeout_ms", "number")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    request_id: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    timeout_ms: int
    number: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., request_id: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., timeout_ms: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "incarnation", "rank", "pid")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    incarnation: int
    rank: int
    pid: int
    def __init__(self, protocol: _Optional[int] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("model", "version", "directory", "handler", "device_type", "gpu_id", "batch_size", "threads", "manifest_json", "config_json", "decode_input", "max_response_bytes", "limit_image_pixels", "service_envelope", "metrics_json", "sequence_header_id", "sequence_header_start", "sequence_header_end", "loop", "ranks", "parallel")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    HANDLER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    GPU_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    DECODE_INPUT_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    METRICS_JSON_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_HEADER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_HEADER_START_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_HEADER_END_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    directory: str
    handler: str
    device_type: str
    gpu_id: int
    batch_size: int
    threads: int
    manifest_json: str
    config_json: str
    decode_input: bool
    max_response_bytes: int
    limit_image_pixels: bool
    service_envelope: str
    metrics_json: str
    sequence_header_id: str
    sequence_header_start: str
    sequence_header_end: str
    loop: str
    ranks: int
    parallel: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., directory: _Optional[str] = ..., handler: _Optional[str] = ..., device_type: _Optional[str] = ..., gpu_id: _Optional[int] = ..., batch_size: _Optional[int] = ..., threads: _Optional[int] = ..., manifest_json: _Optional[str] = ..., config_json: _Optional[str] = ..., decode_input: bool = ..., max_response_bytes: _Optional[int] = ..., limit_image_pixels: bool = ..., service_envelope: _Optional[str] = ..., metrics_json: _Optional[str] = ..., sequence_header_id: _Optional[str] = ..., sequence_header_start: _Optional[str] = ..., sequence_header_end: _Optional[str] = ..., loop: _Optional[str] = ..., ranks: _Optional[int] = ..., parallel: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("percent", "text")
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    percent: int
    text: str
    def __init__(self, percent: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("cost", "optimization_json")
    COST_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_JSON_FIELD_NUMBER: _ClassVar[int]
    cost: str
    optimization_json: str
    def __init__(self, cost: _Optional[str] = ..., optimization_json: _Optional[str] = ...) -> None: ...

class LoadFailed(_message.Message):
    __slots__ = ("kind", "message", "traceback")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    traceback: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("threads",)
    THREADS_FIELD_NUMBER: _ClassVar[int]
    threads: int
    def __init__(self, threads: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("numbers", "text")
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, numbers: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("request", "status", "reason", "headers", "more", "end_of_step")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    END_OF_STEP_FIELD_NUMBER: _ClassVar[int]
    request: int
    status: int
    reason: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    more: bool
    end_of_step: bool
    def __init__(self, request: _Optional[int] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., more: bool = ..., end_of_step: bool = ...) -> None: ...

class Replies(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("request", "kind", "message", "traceback", "end_of_step", "status")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    END_OF_STEP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    request: int
    kind: str
    message: str
    traceback: str
    end_of_step: bool
    status: int
    def __init__(self, request: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., end_of_step: bool = ..., status: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: int
    def __init__(self, request: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("request", "bytes")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    request: int
    bytes: int
    def __init__(self, request: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value", "unit", "type", "dimensions", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    type: str
    dimensions: _containers.RepeatedCompositeFieldContainer[Header]
    request_id: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ..., type: _Optional[str] = ..., dimensions: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("level", "logger", "text", "request_id")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOGGER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    level: int
    logger: str
    text: str
    request_id: str
    def __init__(self, level: _Optional[int] = ..., logger: _Optional[str] = ..., text: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("ended",)
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ended: _containers.RepeatedCompositeFieldContainer[Cancel]
    def __init__(self, ended: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("number", "failed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    number: int
    failed: bool
    def __init__(self, number: _Optional[int] = ..., failed: bool = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("name", "arguments_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments_json: str
    def __init__(self, name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class Unload(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
