"""How the daemon's log looks: readable lines on a terminal, one JSON object a line on request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FORMATS = ("text", "json")
LINE_LIMIT = 8 * 1024
_FIELDS = ("model", "version", "worker")
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31;1m"}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}


class TextFormatter(logging.Formatter):
    """`14:03:07.512 INFO  bert/1.0 worker 3: text`, coloured on a terminal. Control characters are escaped."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        moment = datetime.fromtimestamp(record.created)
        where = _where(record)
        message = _bounded(record.getMessage())
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        message = message.rstrip().translate(_ESCAPES).replace("\n", "\n    ")  # nobody's text starts a line of ours
        level = f"{record.levelname:<7}"
        if self._colour and record.levelno in _COLOURS:
            level = f"{_COLOURS[record.levelno]}{level}\x1b[0m"
        return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d} {level} {where}{message}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage()),
        }
        line |= {field: getattr(record, field) for field in _FIELDS if hasattr(record, field)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(style: str, level: str) -> None:
    """Sends the log to standard error, as text unless JSON is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(sys.stderr.isatty()))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed body; its sender is told
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _bounded(message: str) -> str:
    return message if len(message) <= LINE_LIMIT else f"{message[:LINE_LIMIT]}... ({len(message)} characters)"


def _where(record: logging.LogRecord) -> str:
    model, version, worker = (getattr(record, field, None) for field in _FIELDS)
    if model is None:
        return ""
    return f"{model}/{version}{f' worker {worker}' if worker else ''}: "
