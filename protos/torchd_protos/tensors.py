"""Named tensors as bytes: one JSON head, then the tensors' raw data, as KServe's binary extension lays them out.

    head size   4 bytes   big endian
    head        JSON      an inference request or response of the Open Inference Protocol; a tensor whose data stands
                          behind the head has parameters.binary_data_size instead of data
    data        raw       little endian, one tensor after the other; BYTES elements each have a size of 4 bytes in front

Standard library only: the daemon writes it for workers and reads it from them, and neither has numpy to rely on.
(https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/extension_binary_data.md)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

CONTENT_TYPE = "application/vnd.torchd.tensors"
BINARY_SIZE = "binary_data_size"
HEAD_AT_MOST = 1024 * 1024
# The product of a longer shape, or of larger sizes, would keep the daemon busy for minutes.
DIMENSIONS_AT_MOST = 64
SIZE_AT_MOST = 2**63 - 1

_PREFIX = struct.Struct("!I")
_ELEMENT = struct.Struct("<I")
# struct's letter of each datatype; BF16 is the upper half of a float, BYTES has elements of any size.
_LETTERS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "BF16": "H",
    "FP32": "f",
    "FP64": "d",
}
SIZES = {name: struct.calcsize(f"<{letter}") for name, letter in _LETTERS.items()}
DATATYPES = (*SIZES, "BYTES")

Buffer = bytes | bytearray | memoryview


class TensorsInvalid(ValueError):
    """These bytes or values are not the tensors they say they are; the message names the tensor."""


def pack(head: dict[str, Any], raw: Sequence[Buffer] = ()) -> bytes:
    """The head and the data behind it."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_PREFIX.pack(len(text)), text, *raw))


def prefixed(head_size: int, body: Buffer) -> bytes:
    """What arrived as head and data, with the head's size in front."""
    return _PREFIX.pack(head_size) + body


def unpack(body: Buffer) -> tuple[dict[str, Any], memoryview]:
    """The head and the data behind it; raises TensorsInvalid."""
    view = memoryview(body)
    if len(view) < _PREFIX.size:
        raise TensorsInvalid("the tensors have no head")
    end = _PREFIX.size + _PREFIX.unpack_from(view)[0]
    if end > len(view):
        raise TensorsInvalid("the head of the tensors is cut off")
    try:
        head = json.loads(bytes(view[_PREFIX.size : end]))
    except (ValueError, RecursionError) as error:
        raise TensorsInvalid(f"the head of the tensors is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise TensorsInvalid("the head of the tensors must be a JSON object")
    return head, view[end:]


def raw_of_each(tensors: Any, raw: memoryview) -> list[memoryview | None]:
    """Each tensor's share of the data, None for one that has its values in the head; raises TensorsInvalid."""
    if not isinstance(tensors, list):
        raise TensorsInvalid("the tensors must be a list")
    shares: list[memoryview | None] = []
    start = 0
    for tensor in tensors:
        check_tensor(tensor)
        size = (tensor.get("parameters") or {}).get(BINARY_SIZE)
        if size is None:
            shares.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - start:
            raise TensorsInvalid(f"tensor {tensor['name']!r}: {BINARY_SIZE} {size!r} is not what follows")
        check_size(tensor["name"], tensor["datatype"], tensor["shape"], size)
        shares.append(raw[start : start + size])
        start += size
    if start != len(raw):
        raise TensorsInvalid(f"{len(raw) - start} bytes follow the last tensor")
    return shares


def check_tensor(tensor: Any) -> None:
    """Raises TensorsInvalid unless it has a name, a known datatype and a shape."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise TensorsInvalid("a tensor needs a name")
    name, shape = tensor["name"], tensor.get("shape")
    if tensor.get("datatype") not in DATATYPES:
        raise TensorsInvalid(f"tensor {name!r}: datatype {tensor.get('datatype')!r} is none of {', '.join(DATATYPES)}")
    if isinstance(shape, list) and len(shape) > DIMENSIONS_AT_MOST:
        raise TensorsInvalid(f"tensor {name!r}: {len(shape)} dimensions; at most {DIMENSIONS_AT_MOST} will do")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= SIZE_AT_MOST for size in shape):
        raise TensorsInvalid(f"tensor {name!r}: shape {shape!r:.100} is no list of whole numbers from 0 up")
    if not isinstance(tensor.get("parameters") or {}, dict):
        raise TensorsInvalid(f"tensor {name!r}: parameters must be an object")


def check_size(name: str, datatype: str, shape: Iterable[int], size: int) -> None:
    """Raises TensorsInvalid unless data of this size has this shape."""
    count = prod(shape)
    if datatype != "BYTES" and count * SIZES[datatype] != size:
        raise TensorsInvalid(
            f"tensor {name!r}: {datatype} of shape {list(shape)} has {count * SIZES[datatype]} bytes, not {size}"
        )


def values_of(datatype: str, raw: Buffer) -> list[Any]:
    """The elements of raw data: numbers, booleans, or bytes; raises TensorsInvalid."""
    if datatype == "BYTES":
        return _elements(memoryview(raw))
    count, left = divmod(len(raw), SIZES[datatype])
    if left:
        raise TensorsInvalid(f"{len(raw)} bytes are no whole number of {datatype}")
    values = struct.unpack(f"<{count}{_LETTERS[datatype]}", raw)
    if datatype == "BF16":
        wide = struct.pack(f"<{count}I", *(value << 16 for value in values))
        values = struct.unpack(f"<{count}f", wide)
    return list(values)


def raw_of(datatype: str, values: Sequence[Any]) -> bytes:
    """Elements as raw data; a text among BYTES is UTF-8. Raises TensorsInvalid for what the datatype does not hold."""
    try:
        if datatype == "BYTES":
            encoded = [value.encode() if isinstance(value, str) else bytes(memoryview(value)) for value in values]
            return b"".join(_ELEMENT.pack(len(value)) + value for value in encoded)
        if datatype == "BF16":
            wide = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
            values = [_upper_half(bits) for bits in wide]
        elif datatype == "BOOL" and not all(isinstance(value, bool | int) for value in values):
            raise TypeError("not all are booleans")
        return struct.pack(f"<{len(values)}{_LETTERS[datatype]}", *values)
    except (struct.error, OverflowError, TypeError, UnicodeEncodeError) as error:
        raise TensorsInvalid(f"not {datatype}: {error}") from error


def flat(data: Any) -> list[Any]:
    """The elements of a nested list, in order; anything else is one element."""
    if not isinstance(data, list | tuple):
        return [data]
    if not any(isinstance(item, list | tuple) for item in data):
        return list(data)
    return [element for item in data for element in flat(item)]


def _elements(raw: memoryview) -> list[bytes]:
    found = []
    start = 0
    while start < len(raw):
        begin = start + _ELEMENT.size
        if begin > len(raw) or begin + (size := _ELEMENT.unpack_from(raw, start)[0]) > len(raw):
            raise TensorsInvalid("BYTES data is cut off: each element has its size, 4 bytes little endian, in front")
        found.append(bytes(raw[begin : begin + size]))
        start = begin + size
    return found


def _upper_half(bits: int) -> int:
    """A float's bits as BF16, rounded to the nearest, ties to even; what is no number stays none."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return bits >> 16 | 0x40
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
