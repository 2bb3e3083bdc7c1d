"""The worker protocol without I/O: bytes in, messages out, and back (contract: protos/worker.proto).

Standard library only, so that a model's own protobuf can never break a worker. Each message class lists its fields
once; one small writer and one small reader of protobuf's wire format serve them all
(https://protobuf.dev/programming-guides/encoding). Payload bytes are never copied into a header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

PROTOCOL_VERSION = 1
# What a streamed answer may have on its way, and what each chunk counts for beside its bytes.
STREAM_WINDOW = 1024 * 1024
CHUNK_OVERHEAD = 256
PREFIX = struct.Struct("!BIQ")
_DOUBLE = struct.Struct("<d")

Buffer = bytes | bytearray | memoryview
Writer = Callable[[bytearray, Any], None]


class ProtocolError(ValueError):
    """The other side sent bytes that are not this protocol; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """How much a reader accepts, checked before anything is allocated. Sizes in bytes."""

    header: int = 16 * 1024 * 1024
    payload: int = 1024 * 1024 * 1024


class Message:
    """Base of the messages: `WIRE` maps each field to its number and its type on the wire, in field order.

    Each default is proto3's: an empty field is not on the wire and must be read back as it was.
    """

    __slots__ = ()
    WIRE: ClassVar[dict[str, tuple[int, str | type[Message] | list[type[Message]]]]] = {}

    def payloads(self) -> Sequence[Buffer]:
        """The payload segments in the order the header names them."""
        return ()


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Header(Message):
    """One header; the case of its name is kept."""

    name: str = ""
    value: str = ""

    WIRE = {"name": (1, "string"), "value": (2, "string")}


@dataclass(frozen=True, slots=True)
class Part(Message):
    """One part of a request. `body` is the payload segment; only its size is in the header."""

    name: str = ""
    content_type: str = ""
    body: Buffer = b""

    WIRE = {"name": (1, "string"), "content_type": (2, "string"), "body": (3, "size")}


@dataclass(frozen=True, slots=True)
class Call(Message):
    """What a client asks for, the same for every surface. `timeout_ms` 0 means the client gave no deadline."""

    model: str = ""
    version: str = ""
    request_id: str = ""
    headers: Sequence[Header] = ()
    parts: Sequence[Part] = ()
    timeout_ms: int = 0
    number: int = 0

    WIRE = {
        "model": (1, "string"),
        "version": (2, "string"),
        "request_id": (3, "string"),
        "headers": (4, [Header]),
        "parts": (5, [Part]),
        "timeout_ms": (6, "uint"),
        "number": (7, "uint"),
    }

    def payloads(self) -> Sequence[Buffer]:
        """The bodies of its parts."""
        return [part.body for part in self.parts]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Worker: here I am."""

    protocol: int = 0
    incarnation: int = 0
    rank: int = 0
    pid: int = 0

    WIRE = {"protocol": (1, "uint"), "incarnation": (2, "uint"), "rank": (3, "uint"), "pid": (4, "uint")}


@dataclass(frozen=True, slots=True)
class Load(Message):
    """Daemon: load this model. `gpu_id` is None on the CPU; `threads` 0 leaves the choice to the libraries."""

    model: str = ""
    version: str = ""
    directory: str = ""
    handler: str = ""
    device_type: str = ""
    gpu_id: int | None = None
    batch_size: int = 0
    threads: int = 0
    manifest_json: str = ""
    config_json: str = ""
    decode_input: bool = False
    max_response_bytes: int = 0
    limit_image_pixels: bool = False
    service_envelope: str = ""
    metrics_json: str = ""
    sequence_header_id: str = ""
    sequence_header_start: str = ""
    sequence_header_end: str = ""
    loop: str = ""
    ranks: int = 0
    parallel: str = ""

    WIRE = {
        "model": (1, "string"),
        "version": (2, "string"),
        "directory": (3, "string"),
        "handler": (4, "string"),
        "device_type": (5, "string"),
        "gpu_id": (6, "optional uint"),
        "batch_size": (7, "uint"),
        "threads": (8, "uint"),
        "manifest_json": (9, "string"),
        "config_json": (10, "string"),
        "decode_input": (11, "bool"),
        "max_response_bytes": (12, "uint"),
        "limit_image_pixels": (13, "bool"),
        "service_envelope": (14, "string"),
        "metrics_json": (15, "string"),
        "sequence_header_id": (16, "string"),
        "sequence_header_start": (17, "string"),
        "sequence_header_end": (18, "string"),
        "loop": (19, "string"),
        "ranks": (20, "uint"),
        "parallel": (21, "string"),
    }


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Worker: how far loading is."""

    percent: int = 0
    text: str = ""

    WIRE = {"percent": (1, "uint"), "text": (2, "string")}


@dataclass(frozen=True, slots=True)
class Loaded(Message):
    """Worker: the model answers from now on. `cost` names what its requests are grouped by."""

    cost: str = ""
    optimization_json: str = ""

    WIRE = {"cost": (1, "string"), "optimization_json": (2, "string")}


@dataclass(frozen=True, slots=True)
class LoadFailed(Message):
    """Worker: the model could not be loaded; the process leaves."""

    kind: str = ""
    message: str = ""
    traceback: str = ""

    WIRE = {"kind": (1, "string"), "message": (2, "string"), "traceback": (3, "string")}


@dataclass(frozen=True, slots=True)
class Settings(Message):
    """Daemon: new settings of a living worker."""

    threads: int = 0

    WIRE = {"threads": (1, "uint")}


@dataclass(frozen=True, slots=True)
class Item(Message):
    """One request of a batch."""

    request: int = 0
    remaining_ms: int = 0
    call: Call = Call()

    WIRE = {"request": (1, "uint"), "remaining_ms": (2, "uint"), "call": (3, Call)}


@dataclass(frozen=True, slots=True)
class Batch(Message):
    """Daemon: run these together."""

    step: int = 0
    items: Sequence[Item] = ()

    WIRE = {"step": (1, "uint"), "items": (2, [Item])}

    def payloads(self) -> Sequence[Buffer]:
        """The bodies of its parts."""
        return [part.body for item in self.items for part in item.call.parts]


@dataclass(frozen=True, slots=True)
class Started(Message):
    """Worker: the handler of this batch is about to be called."""

    step: int = 0

    WIRE = {"step": (1, "uint")}


@dataclass(frozen=True, slots=True)
class Reply(Message):
    """An answer, or one chunk of it where `more` follows. `body` is the payload; status 0 stands for 200."""

    request: int = 0
    status: int = 0
    reason: str = ""
    headers: Sequence[Header] = ()
    more: bool = False
    end_of_step: bool = False
    body: Buffer = b""

    WIRE = {
        "request": (1, "uint"),
        "status": (2, "uint"),
        "reason": (3, "string"),
        "headers": (4, [Header]),
        "more": (5, "bool"),
        "end_of_step": (6, "bool"),
    }

    def payloads(self) -> Sequence[Buffer]:
        """The body, the only segment."""
        return [self.body]


@dataclass(frozen=True, slots=True)
class Failure(Message):
    """This request has no answer; `kind` names an error class of the daemon."""

    request: int = 0
    kind: str = ""
    message: str = ""
    traceback: str = ""
    end_of_step: bool = False
    status: int = 0

    WIRE = {
        "request": (1, "uint"),
        "kind": (2, "string"),
        "message": (3, "string"),
        "traceback": (4, "string"),
        "end_of_step": (5, "bool"),
        "status": (6, "uint"),
    }


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Daemon: nobody waits for this answer any more."""

    request: int = 0

    WIRE = {"request": (1, "uint")}


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """Daemon: so many more bytes of a streamed answer may be sent."""

    request: int = 0
    bytes: int = 0

    WIRE = {"request": (1, "uint"), "bytes": (2, "uint")}


@dataclass(frozen=True, slots=True)
class Metric(Message):
    """Worker: one value of a metric, from the handler."""

    name: str = ""
    value: float = 0.0
    unit: str = ""
    type: str = ""
    dimensions: Sequence[Header] = ()
    request_id: str = ""

    WIRE = {
        "name": (1, "string"),
        "value": (2, "double"),
        "unit": (3, "string"),
        "type": (4, "string"),
        "dimensions": (5, [Header]),
        "request_id": (6, "string"),
    }


@dataclass(frozen=True, slots=True)
class Log(Message):
    """Worker: one record of the handler's logging; `level` is Python's number."""

    level: int = 0
    logger: str = ""
    text: str = ""
    request_id: str = ""

    WIRE = {"level": (1, "uint"), "logger": (2, "string"), "text": (3, "string"), "request_id": (4, "string")}


@dataclass(frozen=True, slots=True)
class Step(Message):
    """Leader of a group: call the handler once more, without those that have ended."""

    ended: Sequence[Cancel] = ()

    WIRE = {"ended": (1, [Cancel])}


@dataclass(frozen=True, slots=True)
class Outcome(Message):
    """Ranks of a group: how call `number` of the handler ended."""

    number: int = 0
    failed: bool = False

    WIRE = {"number": (1, "uint"), "failed": (2, "bool")}


@dataclass(frozen=True, slots=True)
class Task(Message):
    """Leader of a group: do what is registered under this name. `body` is the whole payload."""

    name: str = ""
    arguments_json: str = ""
    body: Buffer = b""

    WIRE = {"name": (1, "string"), "arguments_json": (2, "string")}

    def payloads(self) -> Sequence[Buffer]:
        """Its body."""
        return [self.body]


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """Daemon: finish and leave."""


KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Progress,
    3: Loaded,
    4: LoadFailed,
    5: Started,
    6: Reply,
    7: Failure,
    8: Metric,
    9: Log,
    16: Load,
    17: Settings,
    18: Batch,
    19: Cancel,
    20: Credit,
    21: Unload,
    24: Step,
    25: Outcome,
    26: Task,
    32: Call,
}


def encode(message: Message) -> list[Buffer]:
    """The buffers of one frame, to be written in order: prefix and header first, then the payload segments."""
    kind = _KIND_OF[type(message)]
    header = bytearray(PREFIX.size)
    _write(header, message)
    payloads = message.payloads()
    PREFIX.pack_into(header, 0, kind, len(header) - PREFIX.size, sum(map(len, payloads)))
    return [header, *(payload for payload in payloads if payload)]


class FrameReader:
    """Takes bytes as they come and gives whole messages; half a frame waits for the rest."""

    def __init__(self, limits: FrameLimits | None = None) -> None:
        self._limits = limits or FrameLimits()
        self._buffer = bytearray()
        self._wanted = PREFIX.size

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their frame: not 0 at the end of a stream means it was cut."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> Iterator[Message]:
        """Adds `data` and yields every message it completes. Raises ProtocolError on bytes that cannot be ours."""
        self._buffer += data
        while len(self._buffer) >= self._wanted:
            kind, header_size, payload_size = PREFIX.unpack_from(self._buffer)
            self._check(kind, header_size, payload_size)
            end = PREFIX.size + header_size + payload_size
            if len(self._buffer) < end:
                self._wanted = end
                return
            frame = bytes(memoryview(self._buffer)[:end])
            del self._buffer[:end]
            self._wanted = PREFIX.size
            view = memoryview(frame)
            yield decode(kind, view[PREFIX.size : PREFIX.size + header_size], view[PREFIX.size + header_size :])

    def _check(self, kind: int, header_size: int, payload_size: int) -> None:
        if kind not in KINDS:
            raise ProtocolError(f"frame of unknown kind {kind}")
        if header_size > self._limits.header:
            raise ProtocolError(f"frame header of {header_size} bytes is over the limit of {self._limits.header}")
        if payload_size > self._limits.payload:
            raise ProtocolError(f"frame payload of {payload_size} bytes is over the limit of {self._limits.payload}")


def decode(kind: int, header: memoryview, payload: memoryview) -> Message:
    """One message from its header and its payload; the parts' bodies are views of `payload`, not copies."""
    cursor = _Payload(payload)
    try:
        message = _read(KINDS[kind], header, cursor)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ProtocolError(f"malformed {KINDS[kind].__name__}: {error}") from error
    cursor.check_used(kind)
    return message


class _Payload:
    """Hands out the payload's segments in order."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._view):
            raise ProtocolError(f"a part of {size} bytes reaches past the payload of {len(self._view)}")
        segment = self._view[self._at : end]
        self._at = end
        return segment

    def rest(self) -> memoryview:
        return self.take(len(self._view) - self._at)

    def check_used(self, kind: int) -> None:
        if self._at != len(self._view):
            raise ProtocolError(f"{len(self._view) - self._at} payload bytes of a {KINDS[kind].__name__} have no part")


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write(out: bytearray, message: Message) -> None:
    for name, write in _PLANS[type(message)].writers:
        write(out, getattr(message, name))


def _tag(number: int, wire_type: int) -> bytes:
    out = bytearray()
    _write_varint(out, number << 3 | wire_type)
    return bytes(out)


def _uint_writer(tag: bytes) -> Writer:
    def write(out: bytearray, value: int) -> None:
        if value:
            out += tag
            _write_varint(out, value)

    return write


def _optional_uint_writer(tag: bytes) -> Writer:
    def write(out: bytearray, value: int | None) -> None:
        if value is not None:
            out += tag
            _write_varint(out, value)

    return write


def _double_writer(tag: bytes) -> Writer:
    def write(out: bytearray, value: float) -> None:
        packed = _DOUBLE.pack(value)
        if packed != bytes(8):  # -0.0 is not the default
            out += tag + packed

    return write


def _string_writer(tag: bytes) -> Writer:
    def write(out: bytearray, value: str) -> None:
        if value:
            data = value.encode("utf-8", "replace")  # a lone surrogate must not break the frame
            out += tag
            _write_varint(out, len(data))
            out += data

    return write


def _size_writer(tag: bytes) -> Writer:
    write_uint = _uint_writer(tag)
    return lambda out, value: write_uint(out, len(value))


def _message_writer(tag: bytes) -> Writer:
    def write(out: bytearray, value: Message) -> None:
        inner = bytearray()
        _write(inner, value)
        out += tag
        _write_varint(out, len(inner))
        out += inner

    return write


def _repeated_writer(tag: bytes) -> Writer:
    write_one = _message_writer(tag)

    def write(out: bytearray, values: Sequence[Message]) -> None:
        for value in values:
            write_one(out, value)

    return write


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise ProtocolError("varint of more than ten bytes")


def _read(cls: type[M], data: memoryview, payload: _Payload) -> M:
    plan = _PLANS[cls]
    values: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        wire_type = key & 7
        raw: int | memoryview
        if wire_type == 0:
            raw, at = _read_varint(data, at)
        elif wire_type == 2:
            size, at = _read_varint(data, at)
            if at + size > end:
                raise ProtocolError(f"a field of {size} bytes reaches past its message")
            raw = data[at : at + size]
            at += size
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
            if at + size > end:
                raise ProtocolError("a fixed field reaches past its message")
            raw = data[at : at + size]
            at += size
        else:
            raise ProtocolError(f"wire type {wire_type} is not in use")
        reader = plan.readers.get(key)
        if reader is None:
            continue  # a field of a newer version, or of another wire type
        name, read, repeated = reader
        if repeated:
            values.setdefault(name, []).append(read(raw, payload))
        else:
            values[name] = read(raw, payload)
    if plan.takes_rest:
        values["body"] = payload.rest()
    return cls(**values)


Reader = Callable[[Any, _Payload], Any]


def _message_reader(cls: type[Message]) -> Reader:
    return lambda raw, payload: _read(cls, raw, payload)


_SCALARS: dict[str, tuple[int, Callable[[bytes], Writer], Reader]] = {
    "uint": (0, _uint_writer, lambda raw, payload: raw),
    "optional uint": (0, _optional_uint_writer, lambda raw, payload: raw),
    "bool": (0, _uint_writer, lambda raw, payload: raw != 0),
    "double": (1, _double_writer, lambda raw, payload: _DOUBLE.unpack(raw)[0]),
    "string": (2, _string_writer, lambda raw, payload: str(raw, "utf-8")),
    "size": (0, _size_writer, lambda raw, payload: payload.take(raw)),
}


class _Plan:
    """How one message class is written and read, worked out once at import."""

    def __init__(self, cls: type[Message]) -> None:
        self.writers: list[tuple[str, Writer]] = []
        self.readers: dict[int, tuple[str, Reader, bool]] = {}
        # A body that is not in WIRE is the whole payload.
        self.takes_rest = "body" in {field.name for field in fields(cls)} - set(cls.WIRE)  # type: ignore[arg-type]
        for name, (number, kind) in cls.WIRE.items():
            if isinstance(kind, str):
                wire_type, writer, reader = _SCALARS[kind]
                self.writers.append((name, writer(_tag(number, wire_type))))
                self.readers[number << 3 | wire_type] = (name, reader, False)
                continue
            repeated = isinstance(kind, list)
            inner = kind[0] if isinstance(kind, list) else kind
            tag = _tag(number, 2)
            self.writers.append((name, _repeated_writer(tag) if repeated else _message_writer(tag)))
            self.readers[number << 3 | 2] = (name, _message_reader(inner), repeated)


_KIND_OF = {cls: kind for kind, cls in KINDS.items()}
_PLANS = {cls: _Plan(cls) for cls in (*KINDS.values(), Header, Part, Item)}
