"""What an exception of user code becomes on the socket: a kind the daemon knows, one line, and the user's own frames.

Kinds are told by type, not by text (device_errors.py has the one exception). The classes below with a `kind` are the
answers we refuse or stop ourselves.
"""

from __future__ import annotations

import importlib
import os
from itertools import dropwhile
from traceback import FrameSummary, TracebackException
from typing import ClassVar

from torchd_protos.frames import Failure, LoadFailed
from torchd_workers.device_errors import is_device_lost, is_out_of_memory

MESSAGE_BYTES = 1024
TRACEBACK_BYTES = 16 * 1024

_IMPORTING = ("<frozen importlib", os.path.dirname(importlib.__file__) + os.sep)
_RUNTIME = os.path.dirname(os.path.abspath(__file__)) + os.sep
_HANDLERS = os.path.join(_RUNTIME, "handlers") + os.sep


class PredictionException(Exception):
    """A handler raises it to answer the whole batch with a message and a status of its own (`ts.service`)."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{getattr(self, 'message', '')} : {getattr(self, 'error_code', 500)}"


class BadOutput(Exception):
    """What the handler returned is not an answer."""

    kind: ClassVar[str] = "BadOutput"


class NoList(BadOutput):
    """The handler returned no list of answers."""

    kind = "NoList"


class WrongCount(BadOutput):
    """The handler returned more or fewer answers than there were requests."""

    kind = "WrongCount"


class Unsendable(BadOutput):
    """The handler returned an object that has no form on the wire."""

    kind = "Unsendable"


class ResponseTooLarge(Exception):
    """The handler's answer to one request is over the limit."""

    kind: ClassVar[str] = "ResponseTooLarge"


class Cancelled(BaseException):
    """Nobody waits for this answer any more. Not an Exception, so that a handler's `except Exception` lets it pass."""

    kind: ClassVar[str] = "Cancelled"


def failure_of(error: BaseException, request: int, directory: str) -> Failure:
    """The Failure frame for one request; `directory` is the model's, to tell its frames from a library's."""
    kind = kind_of(error)
    if isinstance(error, BadOutput | ResponseTooLarge | Cancelled):
        return Failure(request, kind, _cut(_text(error)))
    if isinstance(error, PredictionException):
        # A subclass need not have called our __init__.
        message = _attribute(error, "message") or _summary(error)
        return Failure(request, kind, _cut(_text(message)), status=_status(_attribute(error, "error_code")))
    return Failure(request, kind, _cut(_summary(error)), user_traceback(error, directory))


def load_failure_of(error: BaseException, directory: str) -> LoadFailed:
    """The LoadFailed frame; its message is one line and ends with the place in the model's own files."""
    kind = "OutOfMemory" if is_out_of_memory(error) else "LoadFailed"
    place = _place(error, directory)
    line = _cut(" ".join(_summary(error).split()), MESSAGE_BYTES - len(place))
    return LoadFailed(kind, line + place, user_traceback(error, directory))


def kind_of(error: BaseException) -> str:
    """The name of the daemon's error class for this exception."""
    if isinstance(error, BadOutput | ResponseTooLarge | Cancelled):
        return error.kind
    if isinstance(error, PredictionException):
        return "PredictionFailed"
    if isinstance(error, SystemExit):
        return "HandlerExit"
    if is_out_of_memory(error):
        return "OutOfMemory"
    return "DeviceLost" if is_device_lost(error) else "HandlerFailed"


def user_traceback(error: BaseException, directory: str) -> str:
    """The traceback without our own frames in front and without the import machinery's; "" if it cannot be had."""
    try:
        told = TracebackException.from_exception(error)
        _cut_frames(told, set())
        text = "".join(told.format()).replace(directory + os.sep, "")
        return text.encode("utf-8", "replace")[-TRACEBACK_BYTES:].decode("utf-8", "ignore")
    except Exception:  # a hostile exception must not cost the answer
        return ""


def _cut_frames(told: TracebackException, seen: set[int]) -> None:
    if id(told) in seen:
        return
    seen.add(id(told))
    frames = [frame for frame in told.stack if not frame.filename.startswith(_IMPORTING)]
    told.stack[:] = dropwhile(_is_runtime, frames)
    inner = [told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())]
    for other in inner:
        if other is not None:
            _cut_frames(other, seen)


def _is_runtime(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_RUNTIME) and not frame.filename.startswith(_HANDLERS)


def _place(error: BaseException, directory: str) -> str:
    """` (file:line)` of the deepest frame in the model's directory, or nothing."""
    inside = os.path.join(directory, "")
    found: tuple[str, int] | None = None
    step = error.__traceback__
    while step is not None:
        filename = step.tb_frame.f_code.co_filename
        if filename.startswith(inside):
            found = filename, step.tb_lineno
        step = step.tb_next
    if isinstance(error, SyntaxError) and str(error.filename).startswith(inside):
        found = str(error.filename), error.lineno or 0
    place = getattr(error, "place", found)  # the loader names the place of what it found wanting
    return f" ({os.path.relpath(place[0], directory)}:{place[1]})" if place else ""


def _summary(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except BaseException:  # a property is user code too
        return None


def _text(value: object) -> str:
    try:
        return str(value)
    except BaseException as error:  # __str__ is user code too
        return f"<its str() raised {type(error).__name__}>"


def _cut(text: str, size: int = MESSAGE_BYTES) -> str:
    return text[:size].encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def _status(code: object) -> int:
    return code if isinstance(code, int) and 100 <= code <= 599 else 500
