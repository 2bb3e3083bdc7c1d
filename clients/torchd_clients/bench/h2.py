"""A client's side of one HTTP/2 connection that carries unary gRPC calls: bytes in, ends of calls out, no socket.

Header blocks are stateless in our direction after the first request (whose fields go into the server's table) and
always in the other one: we announce a table of size 0, so that a trailer seen before means what it meant before.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from struct import Struct
from urllib.parse import unquote

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
# The connection's window is opened again when so much of it was used: far too seldom to cost anything.
_REOPEN_AT = 2**30
_OUR_MAX_FRAME = 2**20
_CANCEL = 8
_LAST_STREAM = 2**31 - 3
_TRAILERS_REMEMBERED = 256
_HEAD = Struct(">IBI")  # length << 8 | type, flags, stream
_SETTING = Struct(">HI")
_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


class ProtocolError(Exception):
    """The server broke HTTP/2; the connection is of no use any more."""


class Ended:
    """The end of one call. `reason` is empty where it was answered with status OK; `unseen` calls were never taken."""

    __slots__ = ("reason", "started", "unseen")

    def __init__(self, started: float, reason: str, unseen: bool = False) -> None:
        self.started = started
        self.reason = reason
        self.unseen = unseen


class _Stream:
    __slots__ = ("body", "head", "received", "started", "unsent", "window")

    def __init__(self, started: float) -> None:
        self.started = started
        self.received = 0
        self.head = b""
        self.body: bytearray | None = None
        self.unsent: memoryview | None = None
        self.window = 0


class Http2Client:
    """One connection. `outgoing` is what is to be written next; the owner empties it.

    Args:
        fields: The header fields of every call, in the order they are sent.
        expect: What the message of a good answer contains.
    """

    def __init__(self, fields: Sequence[tuple[bytes, bytes]], expect: bytes = b"") -> None:
        self._fields = fields
        self._first_block, self._block = _blocks(fields)
        self._expect = expect
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._max_frame = 16_384
        self._received = 0
        self._buffer = b""
        self._data_left = 0
        self._data_stream: _Stream | None = None
        self._open_block: tuple[int, int, bytes] | None = None
        self._reasons: dict[bytes, str] = {}
        self.max_streams = 2**31 - 1
        self.is_ready = False
        # No further calls: the server has said GOAWAY, or the numbers of streams are used up.
        self.is_leaving = False
        settings = ((_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _WINDOW), (_MAX_FRAME, _OUR_MAX_FRAME))
        payload = b"".join(_SETTING.pack(*setting) for setting in settings)
        self.outgoing = bytearray(PREFACE + _frame(SETTINGS, 0, 0, payload))
        self.outgoing += _window_update(0, _WINDOW - _DEFAULT_WINDOW)

    @property
    def calls(self) -> int:
        """Calls on their way."""
        return len(self._streams)

    def start(self, message: bytes, started: float) -> int:
        """Asks: `message` is the gRPC message with its prefix. Gives the call's number."""
        number = self._next_stream
        self._next_stream = number + 2
        if number >= _LAST_STREAM:
            self.is_leaving = True
        block = self._block
        if number == 1:
            block = self._first_block
        self._streams[number] = stream = _Stream(started)
        size = len(message)
        if size <= self._max_frame and size <= self._window and size <= self._initial_window:
            self._window -= size
            self.outgoing += b"".join(
                (
                    _HEAD.pack(len(block) << 8 | HEADERS, END_HEADERS, number),
                    block,
                    _HEAD.pack(size << 8 | DATA, END_STREAM, number),
                    message,
                )
            )
            return number
        self.outgoing += _HEAD.pack(len(block) << 8 | HEADERS, END_HEADERS, number) + block
        stream.unsent = memoryview(message)
        stream.window = self._initial_window
        self._send(number, stream)
        return number

    def cancel(self, number: int) -> None:
        """Gives a call up: nothing more is heard of it."""
        if self._streams.pop(number, None) is not None:
            self.outgoing += _frame(RST_STREAM, 0, number, _CANCEL.to_bytes(4, "big"))

    def overdue(self, started_before: float) -> list[tuple[int, float]]:
        """Number and start of the calls that started before that time."""
        return [(number, one.started) for number, one in self._streams.items() if one.started < started_before]

    def lose(self) -> list[float]:
        """The connection is gone: when the calls started that go with it."""
        lost = [one.started for one in self._streams.values()]
        self._streams.clear()
        return lost

    def feed(self, data: bytes) -> list[Ended]:
        """Takes what was read and gives the calls that ended. Raises ProtocolError."""
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        ended: list[Ended] = []
        streams = self._streams
        unpack = _HEAD.unpack_from
        while True:
            if self._data_left:
                position = self._rest_of_data(data, position)
            if end - position < 9:
                break
            length, flags, number = unpack(data, position)
            kind, length = length & 255, length >> 8
            start = position + 9
            stop = start + length
            if stop > end:
                if length > _OUR_MAX_FRAME:
                    raise ProtocolError(f"a frame of {length} bytes: the server does not speak HTTP/2 as we do")
                if kind != DATA or flags & PADDED:
                    break
                # What is here of it is taken: a message of 1 MiB is not copied once for each read.
                self._data_left = length
                self._data_stream = streams.get(number)
                self._count(length)
                position = start
                continue
            position = stop
            if kind == DATA:
                self._count(length)
                stream = streams.get(number)
                if stream is not None:
                    if flags & PADDED:
                        stop -= data[start]
                        start += 1
                    stream.received += stop - start
                    if self._expect:
                        stream.body = stream.body or bytearray()
                        stream.body += data[start:stop]
                    if flags & END_STREAM:
                        del streams[number]
                        ended.append(Ended(stream.started, "the answer ended without trailers"))
            elif kind in (HEADERS, CONTINUATION):
                block = data[start:stop]
                if flags & END_HEADERS and kind == HEADERS and not flags & (PADDED | PRIORITY):
                    self._headers(number, flags & END_STREAM, block, ended)
                else:
                    self._part_of_headers(kind, number, flags, block, ended)
            else:
                self._control(kind, flags, number, data[start:stop], ended)
        self._buffer = data[position:]
        return ended

    def _count(self, length: int) -> None:
        self._received += length
        if self._received >= _REOPEN_AT:
            self.outgoing += _window_update(0, self._received)
            self._received = 0

    def _rest_of_data(self, data: bytes, position: int) -> int:
        stop = min(position + self._data_left, len(data))
        self._data_left -= stop - position
        stream = self._data_stream
        if stream is not None:
            stream.received += stop - position
            if self._expect:
                stream.body = stream.body or bytearray()
                stream.body += data[position:stop]
        return stop

    def _part_of_headers(self, kind: int, number: int, flags: int, block: bytes, ended: list[Ended]) -> None:
        if kind == CONTINUATION:
            if self._open_block is None or self._open_block[0] != number:
                raise ProtocolError(f"a CONTINUATION of stream {number} without its HEADERS")
            _, ends, before = self._open_block
            block = before + block
        else:
            padding = block[0] if flags & PADDED else 0
            start = bool(flags & PADDED) + 5 * bool(flags & PRIORITY)
            block, ends = block[start : len(block) - padding], flags & END_STREAM
        self._open_block = None if flags & END_HEADERS else (number, ends, block)
        if self._open_block is None:
            self._headers(number, ends, block, ended)

    def _headers(self, number: int, ends: int, block: bytes, ended: list[Ended]) -> None:
        if not ends:
            if (stream := self._streams.get(number)) is not None:
                stream.head = block
            return
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        reason = self._reasons.get(block)
        if reason is None:
            reason = _reason(stream.head, block)
            if len(self._reasons) < _TRAILERS_REMEMBERED and stream.head:
                self._reasons[block] = reason
        if not reason:
            if stream.received < 5:
                reason = "status OK without a message"
            elif self._expect and self._expect not in (stream.body or b""):
                reason = f"an answer without {self._expect.decode(errors='replace')!r}"
        ended.append(Ended(stream.started, reason))

    def _control(self, kind: int, flags: int, number: int, payload: bytes, ended: list[Ended]) -> None:
        match kind:
            case 4 if not flags & ACK:  # SETTINGS
                self._settings(payload)
            case 6 if not flags & ACK:  # PING
                self.outgoing += _frame(PING, ACK, 0, payload)
            case 8:  # WINDOW_UPDATE
                self._widen(number, int.from_bytes(payload, "big") & _WINDOW)
            case 3:  # RST_STREAM
                if (stream := self._streams.pop(number, None)) is not None:
                    code = int.from_bytes(payload, "big")
                    # REFUSED_STREAM: the server has not looked at it.
                    ended.append(Ended(stream.started, f"RST_STREAM with code {code}", unseen=code == 7))
            case 7:  # GOAWAY
                self.is_leaving = True
                last = int.from_bytes(payload[:4], "big") & _WINDOW
                for unseen in [one for one in self._streams if one > last]:
                    ended.append(Ended(self._streams.pop(unseen).started, "GOAWAY", unseen=True))
            case 5:
                raise ProtocolError("PUSH_PROMISE, which we forbade")

    def _settings(self, payload: bytes) -> None:
        for name, value in _SETTING.iter_unpack(payload):
            if name == _MAX_STREAMS:
                self.max_streams = value
            elif name == _MAX_FRAME:
                self._max_frame = value
            elif name == _TABLE_SIZE and value < 4096:
                self._block = self._first_block = _literals(self._fields)
            elif name == _INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
        self.is_ready = True
        self.outgoing += _frame(SETTINGS, ACK, 0, b"")
        self._send_all()

    def _widen(self, number: int, by: int) -> None:
        if number == 0:
            self._window += by
            self._send_all()
        elif (stream := self._streams.get(number)) is not None and stream.unsent is not None:
            stream.window += by
            self._send(number, stream)

    def _send_all(self) -> None:
        for number, stream in self._streams.items():
            if stream.unsent is not None:
                self._send(number, stream)

    def _send(self, number: int, stream: _Stream) -> None:
        unsent = stream.unsent
        while unsent is not None and (size := min(len(unsent), self._max_frame, self._window, stream.window)) > 0:
            is_last = size == len(unsent)
            self.outgoing += _HEAD.pack(size << 8 | DATA, END_STREAM if is_last else 0, number)
            self.outgoing += unsent[:size]
            self._window -= size
            stream.window -= size
            unsent = None if is_last else unsent[size:]
        stream.unsent = unsent


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) << 8 | kind, flags, number) + payload


def _window_update(number: int, by: int) -> bytes:
    return _frame(WINDOW_UPDATE, 0, number, by.to_bytes(4, "big"))


def _blocks(fields: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The header block of the first call, which puts each field into the server's table, and that of all others."""
    first = b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields)
    # The newest entry of the table has number 62.
    return first, b"".join(_number(62 + len(fields) - 1 - place, 7, 0x80) for place in range(len(fields)))


def _literals(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The same for a server with a smaller table: it is told that none is used, and gets literals."""
    return b"\x20" + b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(value: bytes) -> bytes:
    return _number(len(value), 7, 0) + value


def _number(value: int, bits: int, first: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    written = bytearray([first | most])
    while value >= 128:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def _reason(head: bytes, trailers: bytes) -> str:
    """Why the call failed: its code, and the reason or message that came with it; empty where it did not."""
    fields = _decode(trailers)
    status = fields.get(b"grpc-status")
    if status is None:
        http = (_decode(head) if head else fields).get(b":status", b"none").decode(errors="replace")
        return f"no grpc-status (HTTP status {http})"
    if status == b"0":
        return ""
    number = int(status) if status.isdigit() else 2
    code = _CODES[number] if number < len(_CODES) else f"code {number}"
    message = _error_info(fields) or unquote(fields.get(b"grpc-message", b"").decode(errors="replace"))
    # Its first line: where a server sends its traceback along, a reason is still a line.
    return f"{code}: {message.partition(chr(10))[0]}" if message else code


def _error_info(fields: Mapping[bytes, bytes]) -> str:
    """The reason of the ErrorInfo among the status' details: a word, where the message may differ each time."""
    encoded = fields.get(b"grpc-status-details-bin", b"")
    details = b64decode(encoded + b"=" * (-len(encoded) % 4))
    _, found, value = details.partition(b"type.googleapis.com/google.rpc.ErrorInfo\x12")
    # Behind it: the length of ErrorInfo, then its field 1. Both are short, or it is not for us to cut.
    at = 2 if value[:1] > b"\x7f" else 1
    if not found or value[at : at + 1] != b"\x0a":
        return ""
    return value[at + 2 : at + 2 + value[at + 1]].decode(errors="replace")


def _decode(block: bytes) -> dict[bytes, bytes]:
    from hpack import Decoder, HPACKError  # seldom needed: each kind of trailers is decoded once

    decoder = Decoder()
    decoder.header_table_size = 0
    try:
        return {bytes(name): bytes(value) for name, value in decoder.decode(block, raw=True)}
    except HPACKError as error:
        raise ProtocolError(f"a header block that cannot be read: {error}") from error
