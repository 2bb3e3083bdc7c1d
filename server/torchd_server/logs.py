"""How the daemon's log looks, and its way out: readable lines on a terminal, one JSON object a line on request.

Nobody waits for the log (P23): records go into a bounded queue, and one thread writes them. What finds the queue full
is dropped and counted.
"""

from __future__ import annotations

import atexit
import copy
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from time import time

FORMATS = ("text", "json")
LINE_LIMIT = 8 * 1024
QUEUE_RECORDS = 10_000
# Records written in one go.
WRITE_RECORDS = 1000
# How long the end of the process waits for a log that cannot be written.
LAST_LINES_SECONDS = 2.0
_FIELDS = ("model", "version", "worker", "rank", "request")
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31;1m"}
# Whatever a terminal obeys or some reader takes for the end of a line.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
_ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029"}


class TextFormatter(logging.Formatter):
    """`14:03:07.512 INFO  bert/1.0 worker 3: text`, coloured on a terminal. Control characters are escaped."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        moment = datetime.fromtimestamp(record.created)
        message = bounded(record.getMessage())
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        message = escaped(message)
        level = f"{record.levelname:<7}"
        if self._colour and record.levelno in _COLOURS:
            level = f"{_COLOURS[record.levelno]}{level}\x1b[0m"
        return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d} {level} {where(record)}{said_by(record)}{message}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": said_by(record) + bounded(record.getMessage()),
        }
        line |= {field: getattr(record, field) for field in _FIELDS if getattr(record, field, "")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that comes once for each request: `text` is made by the thread that writes it."""

    log: str
    thread: str
    text: Callable[[], str]
    created: float

    def record(self) -> logging.LogRecord:
        """As the handlers take it."""
        record = logging.LogRecord(self.log, logging.INFO, "", 0, self.text(), None, None)
        record.created, record.threadName = self.created, self.thread
        record.msecs = self.created % 1 * 1000
        return record


class LineHandler(logging.Handler):
    """Collects lines and puts them out together; `lost` counts what could not be put out."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lost = 0
        self._lines: list[bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for each record."""
        try:
            self._lines.append(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:  # a record whose text cannot be made must not end the log
            self.lost += 1

    def flush(self) -> None:
        """Puts out what has been collected."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self.put(b"".join(lines))
        except OSError:  # a full disk, a pipe without a reader: nowhere to say so but the counter
            self.lost += len(lines)

    def put(self, content: bytes) -> None:
        """Writes whole lines; raises OSError."""
        raise NotImplementedError


class ConsoleHandler(LineHandler):
    """Lines to a descriptor, past Python's own buffers: a reader that stands still holds up no exit."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__(formatter)
        self._descriptor = descriptor

    def put(self, content: bytes) -> None:
        """Writes them all."""
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


class LogWriter(QueueHandler):
    """The queue in front of the handlers, and the thread behind it."""

    def __init__(self, handlers: Sequence[logging.Handler], size: int = QUEUE_RECORDS) -> None:
        # The C queue, for its put costs a tenth of the other's; it has no limit of its own, so that is kept here.
        self._waiting: queue.SimpleQueue[logging.LogRecord | Line | None] = queue.SimpleQueue()
        super().__init__(self._waiting)
        self._size = size
        self._handlers = handlers
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="torchd log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that nobody will ever read."""
        return self._dropped + sum(handler.lost for handler in self._handlers if isinstance(handler, LineHandler))

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record with its message made: its arguments may change before it is written."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord | Line) -> None:
        """Hands it to the thread, or drops it."""
        if self._waiting.qsize() < self._size:
            self._waiting.put(record)
        else:
            self._dropped += 1

    def stop(self) -> None:
        """Writes what waits, as far as it can be written soon."""
        self._waiting.put(None)
        self._thread.join(LAST_LINES_SECONDS)

    def _write_all(self) -> None:
        while self._write_some():
            pass

    def _write_some(self) -> bool:
        """Waits for a record, writes it and those behind it; False at the end."""
        items = [self._waiting.get()]
        while len(items) < WRITE_RECORDS and not self._waiting.empty():
            items.append(self._waiting.get())  # nobody else takes from it
        for item in items:
            if item is not None:
                self._handle(item.record() if isinstance(item, Line) else item)
        for handler in self._handlers:
            handler.flush()
        return None not in items

    def _handle(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


_writers: list[LogWriter] = []


def configure(style: str, level: str) -> None:
    """Sends the log to standard error, as text unless JSON is asked for."""
    formatter = JsonFormatter() if style == "json" else TextFormatter(sys.stderr.isatty())
    start([ConsoleHandler(sys.stderr.fileno(), formatter)], level)


def start(handlers: Sequence[logging.Handler], level: str) -> None:
    """Sends the log to these handlers, from a thread of their own."""
    stop()
    writer = LogWriter(handlers)
    _writers.append(writer)
    atexit.register(stop)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed body; its sender is told
    logging.basicConfig(level=level.upper(), handlers=[writer], force=True)


def stop() -> None:
    """Writes what waits and ends the thread."""
    while _writers:
        _writers.pop().stop()


def write(log: str, thread: str, text: Callable[[], str]) -> None:
    """One line of a log that is written for every request; never waits."""
    for writer in _writers:
        writer.enqueue(Line(log, thread, text, time()))


def dropped() -> int:
    """Records lost so far."""
    return sum(writer.dropped for writer in _writers)


def escaped(message: str) -> str:
    """Control characters shown, and nobody's text at the beginning of a line of ours."""
    if message.isprintable():
        return message.rstrip()
    return message.rstrip().translate(_ESCAPES).replace("\n", "\n    ")


def bounded(message: str) -> str:
    """The message, cut where it is too long for a line."""
    return message if len(message) <= LINE_LIMIT else f"{message[:LINE_LIMIT]}... ({len(message)} characters)"


def said_by(record: logging.LogRecord) -> str:
    """The logger inside a worker whose record this was."""
    name = getattr(record, "handler_logger", "")
    return f"{name}: " if name else ""


def where(record: logging.LogRecord) -> str:
    """The model, its version, worker, rank and request that a record is about, as the beginning of a line."""
    model, version, *others = (getattr(record, field, None) for field in _FIELDS)
    if model is None:
        return ""
    named = [f" {field} {value}" for field, value in zip(_FIELDS[2:], others, strict=True) if value]
    return f"{model}/{version}{''.join(named)}: "
