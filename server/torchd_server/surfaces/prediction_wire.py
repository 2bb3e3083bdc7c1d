"""PredictionsRequest and PredictionResponse on the wire, read and written without a message object.

A message object would copy a body two or three times on its way to the worker; here a large one stays where gRPC has
received it. What a client may write but none does (fields in pieces, fields nobody knows) is left to the generated
class: `read` says None.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchd_protos.inference_pb2 import PredictionsRequest

# Bodies up to this size are copied: a view costs more, and would keep the whole message.
COPIED_BYTES = 16 * 1024
_MODEL, _VERSION, _INPUT, _SEQUENCE = (number << 3 | 2 for number in (1, 2, 3, 4))
_KEY, _VALUE = _MODEL, _VERSION


@dataclass(slots=True)
class Asked:
    """What a PredictionsRequest says. `sequence` is None where the field is absent."""

    model: str
    version: str
    input: dict[str, bytes | memoryview]
    sequence: str | None


def asked_of(message: bytes) -> Asked:
    """What the message says; raises google.protobuf's DecodeError where it is none."""
    try:
        asked = _read(message)
    except (IndexError, ValueError):  # cut short, or no text: the generated class has words for it
        asked = None
    return asked or asked_in(PredictionsRequest.FromString(message))


def asked_in(request: PredictionsRequest) -> Asked:
    """What a message object says."""
    sequence = request.sequence_id if request.HasField("sequence_id") else None
    return Asked(request.model_name, request.model_version, dict(request.input), sequence)


def answer(prediction: bytes | bytearray | memoryview, sequence: str | None = None) -> bytes:
    """A PredictionResponse."""
    pieces = [b"\x0a", _varint(len(prediction)), prediction] if len(prediction) else []
    if sequence is not None:
        text = sequence.encode()
        pieces += [b"\x12", _varint(len(text)), text]
    return b"".join(pieces)


def _read(message: bytes) -> Asked | None:
    model = version = ""
    sequence = None
    parts: dict[str, bytes | memoryview] = {}
    at, end = 0, len(message)
    while at < end:
        tag = message[at]
        size, at = _size(message, at + 1)
        stop = at + size
        if stop > end:
            return None
        if tag == _INPUT:
            if message[at] != _KEY:
                return None
            size, at = _size(message, at + 1)
            key = message[at : at + size].decode()
            at += size
            if at >= stop or message[at] != _VALUE:
                return None
            size, at = _size(message, at + 1)
            if at + size != stop:
                return None
            parts[key] = message[at:stop] if size <= COPIED_BYTES else memoryview(message)[at:stop]
        elif tag == _MODEL:
            model = message[at:stop].decode()
        elif tag == _VERSION:
            version = message[at:stop].decode()
        elif tag == _SEQUENCE:
            sequence = message[at:stop].decode()
        else:
            return None
        at = stop
    return Asked(model, version, parts, sequence)


def _size(message: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where what follows it begins."""
    size = message[at]
    at += 1
    if size < 0x80:
        return size, at
    size &= 0x7F
    shift = 7
    while True:
        byte = message[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size, at
        shift += 7
        if shift > 28:
            raise ValueError("a size of more than five bytes")


def _varint(value: int) -> bytes:
    if value < 0x80:
        return value.to_bytes()
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
