"""TorchServe's log files and console lines: which record goes where, in which form, and how files roll."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from torchd_server.logs import ConsoleHandler, LineHandler, bounded, escaped, where
from torchd_server.settings import LogFiles
from torchd_server.torchserve.metrics_log import HANDLER_STREAM, SERVER_STREAM

FILE_BYTES = 100 * 1024 * 1024
FILES_KEPT = 5
MODE = 0o640
ACCESS_STREAM = "ACCESS_LOG"
MODEL_LOGGER = "torchd.model"
_LEVELS = {logging.WARNING: "WARN", logging.CRITICAL: "FATAL"}
_REQUEST_STREAMS = frozenset({SERVER_STREAM, HANDLER_STREAM, ACCESS_STREAM})


class LogFolderUnusable(ValueError):
    """Log files cannot be written where they should be."""


class LineFormatter(logging.Formatter):
    """`2024-05-30T21:46:03,626 - text`: the files with one line for each event."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return f"{_moment(record.created)} - {escaped(bounded(record.getMessage()))}"


class ConsoleFormatter(logging.Formatter):
    """`2024-05-30T21:46:03,626 [INFO ] thread LOGGER - text`: the console, ts_log.log and model_log.log."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        message = bounded(record.getMessage())
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        level = _LEVELS.get(record.levelno, record.levelname)
        start = f"{_moment(record.created)} [{level:<5}]"
        if record.name == MODEL_LOGGER:
            return f"{start} {_thread_of_model(record)} MODEL_LOG - {escaped(message)}{_request(record)}"
        thread = (record.threadName or "main").replace("MainThread", "main")
        return f"{start} {thread} {record.name} - {where(record)}{escaped(message)}"


def _thread_of_model(record: logging.LogRecord) -> str:
    model, version, worker = (getattr(record, field, "") for field in ("model", "version", "worker"))
    return f"W-{worker}-{model}_{version}-stdout"


def _request(record: logging.LogRecord) -> str:
    request = getattr(record, "request", "")
    return f" [requestID:{request}]" if request else ""


def _moment(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1e6) // 1000, 1000)
    return f"{_second(whole)},{milliseconds:03d}"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%dT%H:%M:%S}"


class LogFile(LineHandler):
    """A file that rolls: `name.log`, then `name.log.1.gz` to `name.log.5.gz`, the oldest last."""

    def __init__(
        self,
        path: Path,
        formatter: logging.Formatter,
        takes: Callable[[logging.LogRecord], bool],
        most_bytes: int = FILE_BYTES,
    ) -> None:
        super().__init__(formatter)
        self.addFilter(takes)
        self._path = path
        self._most_bytes = most_bytes
        self._descriptor = self._open()

    def put(self, content: bytes) -> None:
        """Appends whole lines, in a new file where the old one is full or somebody has taken it away."""
        held = os.fstat(self._descriptor)
        if held.st_size and held.st_size + len(content) > self._most_bytes:
            self._roll()
        elif not self._path.exists() or not os.path.samestat(held, self._path.stat()):
            self._reopen()
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
        super().close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)

    def _reopen(self) -> None:
        descriptor = self._open()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _roll(self) -> None:
        names = [self._path.with_name(f"{self._path.name}.{number}.gz") for number in range(1, FILES_KEPT + 1)]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        # As private as the file itself, and never through a link in its place.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            self._path.open("rb") as full,
            open(os.open(names[0], flags, MODE), "wb") as file,
            gzip.open(file, "wb", compresslevel=1) as packed,
        ):
            shutil.copyfileobj(full, packed)
        os.unlink(self._path)
        self._reopen()


def handlers(files: LogFiles) -> list[logging.Handler]:
    """The console on standard output, and the files where folders for them are named; raises LogFolderUnusable."""
    found: list[logging.Handler] = [ConsoleHandler(sys.stdout.fileno(), ConsoleFormatter())]
    try:
        if files.logs is not None:
            files.logs.mkdir(parents=True, exist_ok=True)
            found += [
                LogFile(files.logs / "access_log.log", LineFormatter(), _only(ACCESS_STREAM)),
                LogFile(files.logs / "model_log.log", ConsoleFormatter(), _only(MODEL_LOGGER)),
                LogFile(files.logs / "ts_log.log", ConsoleFormatter(), _is_of_server),
            ]
        if files.metrics is not None:
            files.metrics.mkdir(parents=True, exist_ok=True)
            found += [
                LogFile(files.metrics / "ts_metrics.log", LineFormatter(), _only(SERVER_STREAM)),
                LogFile(files.metrics / "model_metrics.log", LineFormatter(), _only(HANDLER_STREAM)),
            ]
    except OSError as error:
        raise LogFolderUnusable(f"log files cannot be written: {error}; choose another LOG_LOCATION") from error
    return found


def _only(log: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: record.name == log


def _is_of_server(record: logging.LogRecord) -> bool:
    return record.name not in _REQUEST_STREAMS
