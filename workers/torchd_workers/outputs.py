"""From what a handler returned to answers on the socket; what cannot be one is refused for its own request only."""

from __future__ import annotations

import re
import sys
from io import BytesIO
from json import JSONEncoder
from typing import Any, Protocol

from torchd_protos.frames import Buffer, Header, Reply
from torchd_workers.failures import BadOutput, NoList, ResponseTooLarge, Unsendable, WrongCount
from torchd_workers.tensors import answer_of

MAX_HEADER_BYTES = 16 * 1024

_encode_json = JSONEncoder(indent=2, allow_nan=False).encode
_BYTES = (bytes, bytearray, memoryview)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TEXT = re.compile(r"[\t\x20-\x7e]*")
# They describe the connection or the framing, which belong to the server.
_SERVER_HEADERS = frozenset(
    {"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)


class Response(Protocol):
    """What a handler has chosen for one response (context.RequestProcessor)."""

    @property
    def is_plain(self) -> bool: ...
    @property
    def wants_tensors(self) -> bool: ...
    def get_response_status_code(self) -> int: ...
    def get_response_status_phrase(self) -> str | None: ...
    def get_response_headers(self) -> dict[str, str]: ...


def checked_list(output: Any, size: int) -> list[Any]:
    """The handler's output as the list of one answer per request; raises BadOutput saying what it was instead."""
    if not isinstance(output, list):
        if hasattr(output, "close") and hasattr(output, "send"):
            output.close()  # a coroutine nobody awaits would warn; a generator would hold its frame
        raise NoList(
            f"the handler returned {_named(output)}; it must return a list with one answer per request, here {size}"
        )
    answers = list(output)
    if len(answers) != size:
        raise WrongCount(
            f"the handler returned {len(answers)} answers to a batch of {size}; it must return one for each"
        )
    return answers


def reply_of(request: int, value: Any, response: Response, max_bytes: int, more: bool = False) -> Reply:
    """The Reply frame for one answer or chunk; raises BadOutput or ResponseTooLarge. `max_bytes` 0 is no limit."""
    body = _tensors_of(value) if response.wants_tensors else body_of(value)
    if max_bytes and len(body) > max_bytes:
        raise ResponseTooLarge(f"the answer has {len(body)} bytes; the limit is {max_bytes} (max_response_size)")
    if response.is_plain:
        return Reply(request, more=more, body=body)
    status = response.get_response_status_code()
    reason = response.get_response_status_phrase() or ""
    _check_status(status, reason)
    headers = _checked_headers(response.get_response_headers())
    return Reply(request, 0 if status == 200 else status, reason, headers, more, body=body)


def _tensors_of(value: Any) -> Buffer:
    """The answer as packed tensors, for the surface that must not parse a large one (Open Inference Protocol)."""
    try:
        # A dictionary may hold bytes, which tensors can and JSON cannot be.
        return answer_of(value, b"" if isinstance(value, dict) and "outputs" in value else body_of(value))
    except (ValueError, TypeError) as error:
        raise BadOutput(f"the answer is none of the Open Inference Protocol: {error}") from error


def body_of(value: Any) -> Buffer:
    """The bytes of one answer: bytes as they are, text as UTF-8, a tensor as torch.save writes it, the rest as JSON."""
    if type(value) is bytes:
        return value
    try:
        if isinstance(value, str):
            return str.encode(value)
        if isinstance(value, _BYTES):
            return memoryview(value).cast("B")  # its length cannot change, nor lie, while it is sent
        if _is_tensor(value):
            buffer = BytesIO()
            sys.modules["torch"].save(value, buffer)
            return buffer.getvalue()
        return _encode_json(value).encode()
    except MemoryError:
        raise
    except Exception as error:  # default() of a patched encoder, __reduce__ of a tensor: user code
        raise Unsendable(
            f"{_named(value)} cannot be sent ({type(error).__name__}: {error}); "
            "an answer must be bytes, str, a torch.Tensor or what json.dumps takes"
        ) from error


def _is_tensor(value: Any) -> bool:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return isinstance(tensor, type) and isinstance(value, tensor)


def _check_status(status: Any, reason: Any) -> None:
    if type(status) is not int or not 200 <= status <= 599:
        raise BadOutput(f"the handler set the response status {status!r:.100}; it must be a number from 200 to 599")
    if not isinstance(reason, str) or not _TEXT.fullmatch(reason) or len(reason) > MAX_HEADER_BYTES:
        raise BadOutput(f"the handler set the reason phrase {reason!r:.100}; it must be short printable ASCII")


def _checked_headers(headers: dict[str, str]) -> list[Header]:
    total = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise BadOutput(f"the handler set a response header named {name!r:.100}, which HTTP does not allow")
        if name.lower() in _SERVER_HEADERS:
            raise BadOutput(f"the handler set the response header {name!r:.100}, which only the server may set")
        if not isinstance(value, str) or not _TEXT.fullmatch(value):
            raise BadOutput(
                f"the handler set the response header {name!r:.100} to {value!r:.100}; it must be printable ASCII"
            )
        total += len(name) + len(value)
    if total > MAX_HEADER_BYTES:
        raise BadOutput(f"the handler set {total} bytes of response headers; the limit is {MAX_HEADER_BYTES}")
    return [Header(name, value) for name, value in headers.items()]


def _named(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
