"""The way out of the log: nobody waits for it (P23, E21, O03), and files roll."""

from __future__ import annotations

import gzip
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.eventually import eventually

from torchd_server import logs
from torchd_server.logs import ConsoleHandler, LineHandler, LogWriter, TextFormatter
from torchd_server.settings import LogFiles
from torchd_server.torchserve import log_files
from torchd_server.torchserve.log_files import FILES_KEPT, LineFormatter, LogFile, LogFolderUnusable


def record(text: str, name: str = "torchd.test") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, text, None, None)


def takes_all(record: logging.LogRecord) -> bool:
    return True


@pytest.fixture
def quiet_root() -> Iterator[None]:
    """What the test makes of logging is undone."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    logs.stop()
    root.handlers[:] = before
    root.setLevel(level)


class Stuck(LineHandler):
    """A sink that takes nothing until it is told."""

    def __init__(self) -> None:
        super().__init__(LineFormatter())
        self.entered = threading.Event()
        self.released = threading.Event()
        self.written = b""

    def put(self, content: bytes) -> None:
        self.entered.set()
        self.released.wait(30)
        self.written += content


def test_a_sink_that_stands_still_costs_records_and_no_time() -> None:
    """O03: the reader of the pipe has stopped."""
    sink = Stuck()
    writer = LogWriter([sink], size=10)
    writer.handle(record("first"))
    assert sink.entered.wait(10)
    for number in range(25):
        writer.handle(record(f"line {number}"))
    assert writer.dropped == 15
    sink.released.set()
    writer.stop()
    assert sink.written.count(b"\n") == 11
    assert b"line 9\n" in sink.written


def test_a_full_disk_is_counted() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LogWriter([ConsoleHandler(full, TextFormatter(colour=False))])
        writer.handle(record("lost"))
        writer.stop()
        assert writer.dropped == 1
    finally:
        os.close(full)


def test_a_record_keeps_what_it_said_when_it_was_made() -> None:
    sink = Stuck()
    sink.released.set()
    writer = LogWriter([sink])
    names = ["before"]
    writer.handle(logging.LogRecord("x", logging.INFO, "", 1, "names %s", (names,), None))
    names[0] = "after"
    writer.stop()
    assert b"names ['before']" in sink.written


def test_an_exception_keeps_its_traceback(quiet_root: None, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    try:
        raise ValueError("what happened")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    logs.stop()
    assert '"exception": "Traceback' in capfd.readouterr().err


def test_every_record_finds_its_file(tmp_path: Path, quiet_root: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Reference section 9: five files, and all of it on standard output."""
    logs.start(log_files.handlers(LogFiles(tmp_path / "logs", tmp_path / "metrics")), "info")
    for log in ("ACCESS_LOG", "TS_METRICS", "MODEL_METRICS"):
        logs.write(log, "torchd", lambda log=log: f"of {log}")  # type: ignore[misc]
    logging.getLogger("torchd.model").warning("of the model", extra={"model": "m", "version": "1", "worker": "3"})
    logging.getLogger("torchd_server.daemon").info("of the server")
    logging.getLogger("torchd_server.daemon").debug("nobody's")
    logs.stop()
    found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.log")}
    assert {name: [line.partition(" - ")[2] for line in text.splitlines()] for name, text in found.items()} == {
        "logs/access_log.log": ["of ACCESS_LOG"],
        "logs/model_log.log": ["of the model"],
        "logs/ts_log.log": ["of the model", "of the server"],
        "metrics/ts_metrics.log": ["of TS_METRICS"],
        "metrics/model_metrics.log": ["of MODEL_METRICS"],
    }
    assert "[WARN ] W-3-m_1-stdout MODEL_LOG - of the model" in found["logs/model_log.log"]
    console = capfd.readouterr().out
    assert sorted(console.splitlines(), key=len)[0].endswith("of ACCESS_LOG")
    assert len(console.splitlines()) == 5


def test_no_folder_no_files(tmp_path: Path) -> None:
    assert len(log_files.handlers(LogFiles())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(LogFolderUnusable, match="LOG_LOCATION"):
        log_files.handlers(LogFiles(tmp_path / "file" / "logs", None))


def test_a_full_file_rolls_and_five_are_kept(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", LineFormatter(), takes_all, most_bytes=100)
    for number in range(20):
        file.handle(record(f"{number:060d}"))
        file.flush()
    file.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.log", *(f"a.log.{number}.gz" for number in range(1, FILES_KEPT + 1))]
    assert f"{19:060d}" in (tmp_path / "a.log").read_text()
    assert f"{18:060d}".encode() in gzip.decompress((tmp_path / "a.log.1.gz").read_bytes())
    assert f"{14:060d}".encode() in gzip.decompress((tmp_path / "a.log.5.gz").read_bytes())
    assert file.lost == 0


def test_a_file_taken_away_is_made_anew(tmp_path: Path) -> None:
    """O03: logrotate, or somebody's rm."""
    path = tmp_path / "a.log"
    file = LogFile(path, LineFormatter(), takes_all)
    for text in ("first", "second"):
        file.handle(record(text))
        file.flush()
        path.rename(tmp_path / text)
    file.handle(record("third"))
    file.flush()
    file.close()
    assert "second" in (tmp_path / "second").read_text()
    assert "third" in path.read_text()


def test_the_writer_needs_nobody_to_ask_for_it(quiet_root: None, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "info")
    logging.getLogger("x").info("a line")
    seen: list[str] = []

    def is_written() -> bool:
        seen.append(capfd.readouterr().err)
        return "a line" in "".join(seen)

    eventually(is_written, what="the line")
    assert sys.stderr.fileno() >= 0
    assert logs.dropped() == 0


def test_a_rolled_file_is_as_private_as_the_file_was(tmp_path: Path) -> None:
    """S48: the console of handlers may hold what clients sent."""
    file = LogFile(tmp_path / "a.log", LineFormatter(), takes_all, most_bytes=10)
    before = os.umask(0o022)
    try:
        file.put(b"0123456789\n")
        file.put(b"0123456789\n")
    finally:
        os.umask(before)
        file.close()
    assert (tmp_path / "a.log.1.gz").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o640
