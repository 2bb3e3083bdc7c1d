"""The worker protocol without I/O: bytes in, messages out, and back (contract: protos/worker.proto).

Standard library only, so that a model's own protobuf can never break a worker. Each message class lists its fields
once; one small writer and one small reader of protobuf's wire format serve them all
(https://protobuf.dev/programming-guides/encoding). Payload bytes are never copied into a header.

Requests and answers travel as columns, a few arrays for a whole batch: Python reads an array in one call, where a tree
of messages costs it one for each field. The classes are not frozen, for a frozen one is made four times as slowly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

PROTOCOL_VERSION = 2
# What a streamed answer may have on its way, and what each chunk counts for beside its bytes.
STREAM_WINDOW = 1024 * 1024
CHUNK_OVERHEAD = 256
PREFIX = struct.Struct("!BIQ")
# A frame of more is received into memory of its own, where it stays.
RECEIVE_BYTES = 64 * 1024
# As much is allocated for a payload before it has come.
_AHEAD_BYTES = 16 * 1024 * 1024
_DOUBLE = struct.Struct("<d")
# User code may patch anything.
_pack = struct.pack
_unpack = struct.unpack

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


class _NameAndValue(NamedTuple):
    name: str = ""
    value: str = ""


class Header(_NameAndValue, Message):
    """One header; the case of its name is kept. A pair of texts, too: many are flattened in one call."""

    __slots__ = ()
    WIRE = {"name": (1, "string"), "value": (2, "string")}


@dataclass(slots=True)
class Part(Message):
    """One part of a request. `body` is the payload segment; only its size is in the header."""

    name: str = ""
    content_type: str = ""
    body: Buffer = b""

    WIRE = {"name": (1, "string"), "content_type": (2, "string"), "body": (3, "size")}


@dataclass(slots=True)
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


@dataclass(slots=True)
class Hello(Message):
    """Worker: here I am."""

    protocol: int = 0
    incarnation: int = 0
    rank: int = 0
    pid: int = 0

    WIRE = {"protocol": (1, "uint"), "incarnation": (2, "uint"), "rank": (3, "uint"), "pid": (4, "uint")}


@dataclass(slots=True)
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


@dataclass(slots=True)
class Progress(Message):
    """Worker: how far loading is."""

    percent: int = 0
    text: str = ""

    WIRE = {"percent": (1, "uint"), "text": (2, "string")}


@dataclass(slots=True)
class Loaded(Message):
    """Worker: the model answers from now on. `cost` names what its requests are grouped by."""

    cost: str = ""
    optimization_json: str = ""

    WIRE = {"cost": (1, "string"), "optimization_json": (2, "string")}


@dataclass(slots=True)
class LoadFailed(Message):
    """Worker: the model could not be loaded; the process leaves."""

    kind: str = ""
    message: str = ""
    traceback: str = ""

    WIRE = {"kind": (1, "string"), "message": (2, "string"), "traceback": (3, "string")}


@dataclass(slots=True)
class Settings(Message):
    """Daemon: new settings of a living worker."""

    threads: int = 0

    WIRE = {"threads": (1, "uint")}


@dataclass(slots=True)
class Columns(Message):
    """The header of a message with many of something: all their numbers, and all their texts one after the other."""

    numbers: Sequence[int] = ()
    text: str = ""

    WIRE = {"numbers": (1, "fixed64s"), "text": (2, "string")}


@dataclass(slots=True)
class Item:
    """One request of a batch. Of its call there travel its id, its headers and its parts: the rest is the daemon's."""

    request: int = 0
    remaining_ms: int = 0
    call: Call = field(default_factory=Call)


@dataclass(slots=True)
class Batch(Message):
    """Daemon: run these together."""

    step: int = 0
    items: Sequence[Item] = ()

    def payloads(self) -> Sequence[Buffer]:
        """The bodies of its parts."""
        return [part.body for item in self.items for part in item.call.parts]

    def columns(self) -> Columns:
        """As it travels: its step and how many items; of each its request, its remaining time, how many headers and
        parts; the lengths of all texts; the sizes of all parts."""
        numbers: list[int] = [self.step, len(self.items)]
        texts: list[str] = []
        sizes: list[int] = []
        for item in self.items:
            call = item.call
            headers, parts = call.headers, call.parts
            numbers += (item.request, item.remaining_ms, len(headers), len(parts))
            texts.append(call.request_id)
            texts += chain.from_iterable(headers)
            for part in parts:
                texts += (part.name, part.content_type)
                sizes.append(len(part.body))
        numbers += map(len, texts)
        numbers += sizes
        return Columns(numbers, "".join(texts))

    @classmethod
    def of_columns(cls, columns: Columns, payload: _Payload) -> Batch:
        """What these columns say; raises ProtocolError or IndexError where they do not agree."""
        numbers, text = columns.numbers, columns.text
        step, count = numbers[0], numbers[1]
        lengths_at = 2 + 4 * count
        n_parts = sum(numbers[5:lengths_at:4])
        sizes_at = lengths_at + count + 2 * (sum(numbers[4:lengths_at:4]) + n_parts)
        ends = list(accumulate(numbers[lengths_at:sizes_at], initial=0))
        if len(numbers) != sizes_at + n_parts or ends[-1] != len(text):
            raise ProtocolError("the columns of a Batch do not agree")
        sizes = iter(numbers[sizes_at:])
        take, at, items = payload.take, 0, []
        for first in range(2, lengths_at, 4):
            request, remaining_ms, n_headers, n_parts = numbers[first : first + 4]
            request_id = text[ends[at] : ends[at + 1]]
            at += 1
            headers = LazyHeaders(text, ends, at, n_headers) if n_headers else ()
            at += 2 * n_headers
            parts = []
            for _ in range(n_parts):
                middle = ends[at + 1]
                parts.append(Part(text[ends[at] : middle], text[middle : ends[at + 2]], take(next(sizes))))
                at += 2
            items.append(Item(request, remaining_ms, Call("", "", request_id, headers, parts)))
        return cls(step, items)


class LazyHeaders(Sequence[Header]):
    """Headers of a batch that was received, cut out of its text when somebody reads them."""

    __slots__ = ("_count", "_ends", "_first", "_text")

    def __init__(self, text: str, ends: Sequence[int], first: int, count: int) -> None:
        self._text = text
        self._ends = ends
        self._first = first
        self._count = count

    def __len__(self) -> int:
        """How many they are."""
        return self._count

    @overload
    def __getitem__(self, at: int) -> Header: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Header]: ...
    def __getitem__(self, at: int | slice) -> Header | Sequence[Header]:
        """One of them, or some."""
        return list(self)[at]

    def __iter__(self) -> Iterator[Header]:
        """All of them."""
        text, ends = self._text, self._ends
        for at in range(self._first, self._first + 2 * self._count, 2):
            yield Header(text[ends[at] : ends[at + 1]], text[ends[at + 1] : ends[at + 2]])

    def mentions(self, text: str) -> bool:
        """Whether it stands somewhere in them; costs less than reading them."""
        return self._text.find(text, self._ends[self._first], self._ends[self._first + 2 * self._count]) >= 0

    def __eq__(self, other: object) -> bool:
        """As other sequences of headers."""
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True)
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


@dataclass(slots=True)
class Replies(Message):
    """Worker: a call of the handler has ended after `handler_us` microseconds; answers of it that are bodies only."""

    requests: Sequence[int] = ()
    bodies: Sequence[Buffer] = ()
    handler_us: int = 0
    end_of_step: bool = False

    def payloads(self) -> Sequence[Buffer]:
        """The bodies."""
        return self.bodies

    def columns(self) -> Columns:
        """As they travel: the time, whether the batch has ended, the requests, the sizes of their bodies."""
        return Columns([self.handler_us, self.end_of_step, *self.requests, *map(len, self.bodies)])

    @classmethod
    def of_columns(cls, columns: Columns, payload: _Payload) -> Replies:
        """What these columns say; raises ProtocolError or IndexError where they do not agree."""
        numbers = columns.numbers
        middle = 1 + len(numbers) // 2
        if len(numbers) % 2:
            raise ProtocolError("the columns of Replies do not agree")
        bodies = list(map(payload.take, numbers[middle:]))
        return cls(numbers[2:middle], bodies, numbers[0], bool(numbers[1]))


@dataclass(slots=True)
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


@dataclass(slots=True)
class Cancel(Message):
    """Daemon: nobody waits for this answer any more."""

    request: int = 0

    WIRE = {"request": (1, "uint")}


@dataclass(slots=True)
class Credit(Message):
    """Daemon: so many more bytes of a streamed answer may be sent."""

    request: int = 0
    bytes: int = 0

    WIRE = {"request": (1, "uint"), "bytes": (2, "uint")}


@dataclass(slots=True)
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


@dataclass(slots=True)
class Log(Message):
    """Worker: one record of the handler's logging; `level` is Python's number."""

    level: int = 0
    logger: str = ""
    text: str = ""
    request_id: str = ""

    WIRE = {"level": (1, "uint"), "logger": (2, "string"), "text": (3, "string"), "request_id": (4, "string")}


@dataclass(slots=True)
class Step(Message):
    """Leader of a group: call the handler once more, without those that have ended."""

    ended: Sequence[Cancel] = ()

    WIRE = {"ended": (1, [Cancel])}


@dataclass(slots=True)
class Outcome(Message):
    """Ranks of a group: how call `number` of the handler ended."""

    number: int = 0
    failed: bool = False

    WIRE = {"number": (1, "uint"), "failed": (2, "bool")}


@dataclass(slots=True)
class Task(Message):
    """Leader of a group: do what is registered under this name. `body` is the whole payload."""

    name: str = ""
    arguments_json: str = ""
    body: Buffer = b""

    WIRE = {"name": (1, "string"), "arguments_json": (2, "string")}

    def payloads(self) -> Sequence[Buffer]:
        """Its body."""
        return [self.body]


@dataclass(slots=True)
class Unload(Message):
    """Daemon: finish and leave."""


KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Progress,
    3: Loaded,
    4: LoadFailed,
    5: Replies,
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
    _write(header, message.columns() if isinstance(message, _WITH_COLUMNS) else message)
    payloads = message.payloads()
    PREFIX.pack_into(header, 0, kind, len(header) - PREFIX.size, sum(map(len, payloads)))
    return [header, *(payload for payload in payloads if payload)]


class FrameReader:
    """Takes bytes as they come and gives whole messages; half a frame waits for the rest.

    Receive into `space()`, then say `received(size)`. What a large frame carries is received where it stays.
    """

    def __init__(self, limits: FrameLimits | None = None) -> None:
        self._limits = limits or FrameLimits()
        self._view = memoryview(bytearray(RECEIVE_BYTES))
        self._start = self._end = 0
        self._large: _LargeFrame | None = None

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their frame: not 0 at the end of a stream means it was cut."""
        return self._end - self._start if self._large is None else self._large.received_bytes

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            return self._large.space()
        if self._end == len(self._view) or (self._start and 2 * self._end > len(self._view)):
            waiting = self._view[self._start : self._end]
            # A header that is larger than all of it is read from a larger one.
            target = self._view if self._start else memoryview(bytearray(2 * len(self._view)))
            target[: len(waiting)] = waiting
            self._view, self._start, self._end = target, 0, len(waiting)
        return self._view[self._end :]

    def received(self, size: int) -> Iterator[Message]:
        """Yields every message that `size` more bytes in `space()` complete. Raises ProtocolError on bytes not ours."""
        if self._large is not None:
            self._large.add(size)
            if self._large.is_whole:
                large, self._large = self._large, None
                yield large.message()
            return
        self._end += size
        while self._end - self._start >= PREFIX.size:
            kind, header_size, payload_size = PREFIX.unpack_from(self._view, self._start)
            self._check(kind, header_size, payload_size)
            header_at = self._start + PREFIX.size
            payload_at = header_at + header_size
            if payload_at > self._end:
                return
            frame_end = payload_at + payload_size
            if frame_end - self._start > RECEIVE_BYTES and frame_end > self._end:
                header = bytes(self._view[header_at:payload_at])
                self._large = _LargeFrame(kind, header, payload_size, self._view[payload_at : self._end])
                self._start = self._end = 0
                return
            if frame_end > self._end:
                return
            header = bytes(self._view[header_at:payload_at])
            payload = bytes(self._view[payload_at:frame_end])
            self._start = frame_end
            if frame_end == self._end:
                self._start = self._end = 0
            yield decode(kind, header, payload)

    def feed(self, data: Buffer) -> Iterator[Message]:
        """As `received`, for bytes that are elsewhere."""
        view = memoryview(data)
        while view:
            space = self.space()
            size = min(len(space), len(view))
            space[:size] = view[:size]
            view = view[size:]
            yield from self.received(size)

    def _check(self, kind: int, header_size: int, payload_size: int) -> None:
        if kind not in KINDS:
            raise ProtocolError(f"frame of unknown kind {kind}")
        if header_size > self._limits.header:
            raise ProtocolError(f"frame header of {header_size} bytes is over the limit of {self._limits.header}")
        if payload_size > self._limits.payload:
            raise ProtocolError(f"frame payload of {payload_size} bytes is over the limit of {self._limits.payload}")


class _LargeFrame:
    """A frame whose header has come and whose payload is coming, into memory of its own."""

    def __init__(self, kind: int, header: bytes, size: int, begun: memoryview) -> None:
        self._kind = kind
        self._header = header
        self._missing = size
        # Of a huge payload no more than _AHEAD_BYTES are allocated before they come.
        self._chunks: list[bytearray] = []
        self._open = memoryview(b"")
        self._received = 0
        while begun:
            space = self.space()
            size = min(len(space), len(begun))
            space[:size] = begun[:size]
            begun = begun[size:]
            self.add(size)

    @property
    def is_whole(self) -> bool:
        return not self._missing

    @property
    def received_bytes(self) -> int:
        return PREFIX.size + len(self._header) + self._received

    def space(self) -> memoryview:
        if not self._open:
            self._chunks.append(bytearray(min(self._missing, _AHEAD_BYTES)))
            self._open = memoryview(self._chunks[-1])
        return self._open

    def add(self, size: int) -> None:
        self._open = self._open[size:]
        self._received += size
        self._missing -= size

    def message(self) -> Message:
        payload = self._chunks[0] if len(self._chunks) == 1 else bytearray().join(self._chunks)
        return decode(self._kind, self._header, payload)


def decode(kind: int, header: bytes, payload: bytes | bytearray) -> Message:
    """One message from its header and its payload; parts of a large payload are views of it, not copies."""
    cursor = _Payload(payload)
    cls = KINDS[kind]
    try:
        if issubclass(cls, _WITH_COLUMNS):
            message: Message = cls.of_columns(_read(Columns, header, cursor), cursor)
        else:
            message = _read(cls, header, cursor)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ProtocolError(f"malformed {cls.__name__}: {error}") from error
    cursor.check_used(kind)
    return message


class _Payload:
    """Hands out the payload's segments in order. Whoever gets all of it gets the object itself."""

    __slots__ = ("_at", "_payload", "_source")

    def __init__(self, payload: bytes | bytearray) -> None:
        self._payload = payload
        # A slice of bytes is a copy, which for few of them costs less than a view; of a large payload there is one.
        self._source: Buffer = payload if isinstance(payload, bytes) else memoryview(payload)
        self._at = 0

    def take(self, size: int) -> Buffer:
        at, end, whole = self._at, self._at + size, len(self._payload)
        if end > whole:
            raise ProtocolError(f"a part of {size} bytes reaches past the payload of {whole}")
        self._at = end
        return self._payload if size == whole else self._source[at:end]

    def rest(self) -> Buffer:
        return self.take(len(self._payload) - self._at)

    def check_used(self, kind: int) -> None:
        if self._at != len(self._payload):
            raise ProtocolError(
                f"{len(self._payload) - self._at} payload bytes of a {KINDS[kind].__name__} have no part"
            )


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write(out: bytearray, message: Message) -> None:
    for name, write in _plan_of(type(message)).writers:
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


def _fixed64s_writer(tag: bytes) -> Writer:
    def write(out: bytearray, values: Sequence[int]) -> None:
        if values:
            out += tag
            _write_varint(out, 8 * len(values))
            out += _pack(f"<{len(values)}Q", *values)

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


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
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


def _read(cls: type[M], data: bytes, payload: _Payload) -> M:
    plan = _plan_of(cls)
    readers = plan.readers
    values: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = _read_varint(data, at - 1)
        wire_type = key & 7
        raw: int | bytes
        if wire_type == 0:
            raw, at = _read_varint(data, at)
        elif wire_type == 2:
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = _read_varint(data, at - 1)
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
        reader = readers.get(key)
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
    "fixed64s": (2, _fixed64s_writer, lambda raw, payload: _unpack(f"<{len(raw) // 8}Q", raw)),
}


class _Plan:
    """How one message class is written and read, worked out when the first is."""

    def __init__(self, cls: type[Message]) -> None:
        self.writers: list[tuple[str, Writer]] = []
        self.readers: dict[int, tuple[str, Reader, bool]] = {}
        # A body that is not in WIRE is the whole payload.
        self.takes_rest = "body" in getattr(cls, "__slots__", ()) and "body" not in cls.WIRE
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


_WITH_COLUMNS = (Batch, Replies)
_KIND_OF = {cls: kind for kind, cls in KINDS.items()}
_PLANS: dict[type[Message], _Plan] = {}


def _plan_of(cls: type[Message]) -> _Plan:
    plan = _PLANS.get(cls)
    if plan is None:
        plan = _PLANS[cls] = _Plan(cls)
    return plan
