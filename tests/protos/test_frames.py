"""frames.py against the code generated from worker.proto, both ways, and against bytes that are not ours."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchd_protos import frames, worker_pb2

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=40)
BODY = st.binary(max_size=200)
# Messages whose body is the whole payload and stands in no header.
WHOLE_PAYLOAD = (frames.Reply, frames.Task)
# Fields that worker.proto has as uint32; every other number is a uint64.
NARROW = {"protocol", "rank", "pid", "gpu_id", "batch_size", "threads", "percent", "status", "level", "ranks"}


# Of a call there travel with a batch its id, its headers and its parts.
ITEMS = st.builds(
    frames.Item,
    UINT64,
    UINT64,
    st.builds(
        frames.Call,
        request_id=TEXT,
        headers=st.lists(st.builds(frames.Header, TEXT, TEXT), max_size=4),
        parts=st.lists(st.builds(frames.Part, TEXT, TEXT, BODY), max_size=4),
    ),
)


def strategy(cls: type[frames.Message]) -> st.SearchStrategy[Any]:
    """Instances of one message class, made from its own table of fields."""
    if cls is frames.Batch:
        return st.builds(frames.Batch, UINT64, st.lists(ITEMS, max_size=4))
    if cls is frames.Replies:
        answers = st.lists(st.tuples(UINT64, BODY), max_size=4)
        return st.builds(
            lambda told, *rest: frames.Replies([number for number, _ in told], [body for _, body in told], *rest),
            *(answers, UINT64, st.booleans()),
        )
    fields: dict[str, st.SearchStrategy[Any]] = {name: _value(name, kind) for name, (_, kind) in cls.WIRE.items()}
    if cls in WHOLE_PAYLOAD:
        fields["body"] = BODY
    return st.builds(cls, **fields)


def _value(name: str, kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, list):
        return st.lists(strategy(kind[0]), max_size=4)
    if isinstance(kind, type):
        return strategy(kind)
    number = UINT32 if name in NARROW else UINT64
    return {
        "uint": number,
        "optional uint": st.none() | number,
        "bool": st.booleans(),
        "double": st.floats(allow_nan=False),
        "string": TEXT,
        "size": BODY,
    }[kind]


MESSAGES = st.sampled_from(sorted(frames.KINDS)).flatmap(lambda kind: strategy(frames.KINDS[kind]))


def to_generated(message: frames.Message) -> Any:
    """The same content in the generated class."""
    made: Any = getattr(worker_pb2, type(message).__name__)()
    wire = message.columns() if isinstance(message, frames.Batch | frames.Replies) else message
    for name, (_, kind) in wire.WIRE.items():
        value = getattr(wire, name)
        if kind == "size":
            made.size = len(value)
        elif kind == "fixed64s":
            made.numbers.extend(value)
        elif isinstance(kind, list):
            getattr(made, name).extend(to_generated(item) for item in value)
        elif isinstance(kind, type):
            getattr(made, name).CopyFrom(to_generated(value))
        elif value is not None and hasattr(made, name):  # Replies have no text
            setattr(made, name, value)
    return made


def plain(value: Any) -> Any:
    """A message as nested tuples: a body may be bytes or a view of them, a sequence a list or a tuple."""
    if isinstance(value, frames.Batch):
        items = [(item.request, item.remaining_ms, plain(item.call)) for item in value.items]
        return (frames.Batch, value.step, *items)
    if isinstance(value, frames.Replies):
        return (list(value.requests), list(map(bytes, value.bodies)), value.handler_us, value.end_of_step)
    if isinstance(value, frames.Message):
        names = (*value.WIRE, *(["body"] if isinstance(value, WHOLE_PAYLOAD) else []))
        return (type(value), *(plain(getattr(value, name)) for name in names))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(item) for item in value)
    return value


def joined(message: frames.Message) -> bytes:
    """One whole frame."""
    return b"".join(map(bytes, frames.encode(message)))


def frame(kind: int, header: bytes, payload: bytes = b"") -> bytes:
    """One frame by hand."""
    return struct.pack("!BIQ", kind, len(header), len(payload)) + header + payload


def kind_of(message: frames.Message) -> int:
    """The number of a message's class in worker.proto, found by its name there."""
    name = "".join(f"_{letter}" if letter.isupper() else letter for letter in type(message).__name__)
    return worker_pb2.Kind.Value(f"KIND{name.upper()}")


def test_every_kind_of_the_contract_has_its_class() -> None:
    numbers = {value for name, value in worker_pb2.Kind.items() if value}
    assert numbers == set(frames.KINDS)
    assert all(kind_of(cls()) == kind for kind, cls in frames.KINDS.items())


def test_every_field_of_the_contract_has_its_number() -> None:
    classes: list[type[frames.Message]] = [*frames.KINDS.values(), frames.Header, frames.Part]
    for cls in classes:
        descriptor = worker_pb2.DESCRIPTOR.message_types_by_name[cls.__name__]
        wire = frames.Columns.WIRE if cls in (frames.Batch, frames.Replies) else cls.WIRE
        ours = {"size" if kind == "size" else name: number for name, (number, kind) in wire.items()}
        if cls is frames.Replies:
            del ours["text"]  # it has none
        assert ours == {field.name: field.number for field in descriptor.fields}, cls.__name__


@given(MESSAGES)
def test_generated_code_reads_what_frames_writes(message: frames.Message) -> None:
    data = joined(message)
    kind, header_size, payload_size = struct.unpack_from("!BIQ", data)
    header, payload = data[13 : 13 + header_size], data[13 + header_size :]
    assert kind == kind_of(message)
    assert getattr(worker_pb2, type(message).__name__).FromString(header) == to_generated(message)
    assert payload == b"".join(map(bytes, message.payloads()))
    assert payload_size == len(payload)


@given(MESSAGES)
def test_frames_reads_what_generated_code_writes(message: frames.Message) -> None:
    header = to_generated(message).SerializeToString()
    payload = b"".join(map(bytes, message.payloads()))
    [read] = frames.FrameReader().feed(frame(kind_of(message), header, payload))
    assert plain(read) == plain(message)


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_a_stream_may_be_split_anywhere(messages: list[frames.Message], data: st.DataObject) -> None:
    stream = b"".join(map(joined, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = frames.FrameReader()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    read = [message for piece in pieces for message in reader.feed(piece)]
    assert list(map(plain, read)) == list(map(plain, messages))
    assert reader.buffered == 0


@given(MESSAGES, st.data())
def test_half_a_frame_waits_for_the_rest(message: frames.Message, data: st.DataObject) -> None:
    whole = joined(message)
    cut = data.draw(st.integers(1, len(whole) - 1))
    reader = frames.FrameReader()
    assert list(reader.feed(whole[:cut])) == []
    assert reader.buffered == cut
    assert list(map(plain, reader.feed(whole[cut:]))) == [plain(message)]


def test_a_frame_may_come_byte_by_byte() -> None:
    message = frames.Call(model="m", parts=[frames.Part(body=b"abc"), frames.Part(name="second", body=b"de")])
    reader = frames.FrameReader()
    read = [found for byte in joined(message) for found in reader.feed(bytes([byte]))]
    assert list(map(plain, read)) == [plain(message)]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_header_is_read_up_to_its_limit(over: int) -> None:
    """E14, S59: the length is checked before the bytes arrive."""
    header = frame(9, worker_pb2.Log(text="x" * 50).SerializeToString())
    size = len(header) - 13
    reader = frames.FrameReader(frames.FrameLimits(header=size - over, payload=10))
    if over > 0:
        with pytest.raises(frames.ProtocolError, match="limit"):
            list(reader.feed(header[:13]))
    else:
        assert [type(message) for message in reader.feed(header)] == [frames.Log]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_payload_is_read_up_to_its_limit(over: int) -> None:
    """E14, S59: the length is checked before the bytes arrive."""
    whole = joined(frames.Reply(request=1, body=b"y" * 100))
    header_size = struct.unpack_from("!BIQ", whole)[1]
    reader = frames.FrameReader(frames.FrameLimits(header=header_size, payload=100 - over))
    if over > 0:
        with pytest.raises(frames.ProtocolError, match="limit"):
            list(reader.feed(whole[:13]))
    else:
        assert [type(message) for message in reader.feed(whole)] == [frames.Reply]


def test_an_announced_length_allocates_nothing() -> None:
    """S59: four exabytes are refused by the number alone."""
    with pytest.raises(frames.ProtocolError, match="limit"):
        list(frames.FrameReader().feed(struct.pack("!BIQ", 6, 0, 2**62)))


@given(st.binary(max_size=300))
@example(b"\xff" * 13)
@example(struct.pack("!BIQ", 0, 0, 0))
def test_garbage_is_a_protocol_error_or_half_a_frame(data: bytes) -> None:
    _feed_anything(frames.FrameReader(), data)


@given(st.sampled_from(sorted(frames.KINDS)), st.binary(max_size=200), st.binary(max_size=50))
def test_garbage_inside_a_frame_is_a_protocol_error_or_a_message(kind: int, header: bytes, payload: bytes) -> None:
    _feed_anything(frames.FrameReader(), frame(kind, header, payload))


@given(MESSAGES, st.data())
def test_a_damaged_frame_is_a_protocol_error_or_a_message(message: frames.Message, data: st.DataObject) -> None:
    whole = bytearray(joined(message))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    _feed_anything(frames.FrameReader(), bytes(whole))


def _feed_anything(reader: frames.FrameReader, data: bytes) -> None:
    try:
        messages = list(reader.feed(data))
    except frames.ProtocolError:
        return
    assert all(type(message) in frames.KINDS.values() for message in messages)


@pytest.mark.parametrize(
    ("kind", "header", "payload"),
    [
        (18, worker_pb2.Batch(numbers=[1, 1, 7, 8, 0, 1, 0, 0, 0, 5]).SerializeToString(), b"four"),
        (18, worker_pb2.Batch(numbers=[1, 1, 7, 8, 0, 2, 0, 0, 0, 4]).SerializeToString(), b"four"),
        (18, worker_pb2.Batch(numbers=[1, 1, 7, 8, 0, 1, 0, 0, 0, 4, 0]).SerializeToString(), b"four"),
        (18, worker_pb2.Batch(numbers=[1, 1, 7, 8, 0, 0, 2], text="four").SerializeToString(), b""),
        (18, worker_pb2.Batch(numbers=[1, 2**63, 7, 8, 0, 0, 0]).SerializeToString(), b""),
        (18, worker_pb2.Batch(numbers=[1]).SerializeToString(), b""),
        (5, worker_pb2.Replies(numbers=[0, 1, 7, 8, 4]).SerializeToString(), b"four"),
        (5, worker_pb2.Replies(numbers=[0, 1, 7, 5]).SerializeToString(), b"four"),
        (5, b"", b""),
        (32, worker_pb2.Call(parts=[{"size": 2}]).SerializeToString(), b"four"),
        (1, b"", b"a Hello has no payload"),
        (1, b"\x0a", b""),
        (9, b"\x12\x05abc", b""),
        (9, b"\x12\x02\xff\xfe", b""),
        (8, b"\x11\x00", b""),
        (1, b"\x0b", b""),
        (1, b"\x08" + b"\xff" * 11, b""),
    ],
    ids=[
        "part past the payload",
        "more parts than texts",
        "more sizes than parts",
        "text that nobody has",
        "more items than numbers",
        "no items",
        "fewer answers than requests",
        "an answer past the payload",
        "answers without a number",
        "payload without a part",
        "payload without a place",
        "string without a length",
        "string past the header",
        "string that is not UTF-8",
        "half a double",
        "group",
        "varint without an end",
    ],
)
def test_a_lie_inside_a_frame_is_refused(kind: int, header: bytes, payload: bytes) -> None:
    with pytest.raises(frames.ProtocolError):
        list(frames.FrameReader().feed(frame(kind, header, payload)))


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    later = worker_pb2.Cancel(request=7).SerializeToString() + b"\xf8\x3f\x05" + b"\xfa\x3f\x03new"
    assert list(frames.FrameReader().feed(frame(19, later))) == [frames.Cancel(request=7)]


def test_a_lone_surrogate_does_not_break_the_frame() -> None:
    [read] = frames.FrameReader().feed(joined(frames.Log(text="\udc80 kept")))
    assert isinstance(read, frames.Log)
    assert read.text.endswith(" kept")


@pytest.mark.parametrize("gpu_id", [None, 0, 3])
def test_an_absent_gpu_is_not_gpu_0(gpu_id: int | None) -> None:
    [read] = frames.FrameReader().feed(joined(frames.Load(gpu_id=gpu_id)))
    assert isinstance(read, frames.Load)
    assert read.gpu_id == gpu_id


@pytest.mark.parametrize("cls", [*frames.KINDS.values(), frames.Part, frames.Header])
def test_an_absent_field_is_empty_and_not_a_default_of_the_class(cls: type[frames.Message]) -> None:
    """What one side leaves out because it is empty must not come to life on the other side."""
    wrapped = {
        frames.Batch: frames.Batch(items=[frames.Item()]),
        frames.Part: frames.Call(parts=[frames.Part(name="", content_type="")]),
        frames.Header: frames.Call(headers=[frames.Header()]),
    }
    empty = wrapped.get(cls) or cls(
        **{name: _EMPTY[kind] for name, (_, kind) in cls.WIRE.items() if isinstance(kind, str)}
    )
    [read] = frames.FrameReader().feed(joined(empty))
    assert plain(read) == plain(empty)


_EMPTY = {
    "uint": 0,
    "optional uint": None,
    "bool": False,
    "double": 0.0,
    "string": "",
    "size": b"",
    "fixed64s": (),
}


@pytest.mark.parametrize("size", [frames.RECEIVE_BYTES, 3_000_000, 40_000_000])
def test_a_large_payload_comes_whole_and_what_follows_it_too(size: int) -> None:
    body = random.Random(size).randbytes(size)
    stream = joined(frames.Reply(1, body=b"before")) + joined(frames.Reply(2, body=body)) + joined(frames.Cancel(3))
    first, second, third = frames.FrameReader().feed(stream)
    assert (first, second, third) == (frames.Reply(1, body=b"before"), frames.Reply(2, body=body), frames.Cancel(3))


def test_a_header_larger_than_the_readers_buffer_is_read() -> None:
    log = frames.Log(text="x" * 3 * frames.RECEIVE_BYTES)
    reader = frames.FrameReader()
    assert list(reader.feed(joined(log) * 2 + joined(frames.Cancel(3)))) == [log, log, frames.Cancel(3)]


def test_the_headers_of_a_batch_are_a_sequence_like_another() -> None:
    headers = [frames.Header("a", "1"), frames.Header("\u00e9", "\U0001f600"), frames.Header("", "")]
    batch = frames.Batch(1, [frames.Item(7, 8, frames.Call(request_id="r", headers=headers))])
    [read] = frames.FrameReader().feed(joined(batch))
    assert isinstance(read, frames.Batch)
    found = read.items[0].call.headers
    assert (found, list(found), found[1], found[-1:], len(found)) == (headers, headers, headers[1], headers[2:], 3)
