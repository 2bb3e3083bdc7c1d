"""The daemon's log: one record, one line, whatever a handler or a client puts into it (S39)."""

from __future__ import annotations

import json
import logging
import re
import sys

from hypothesis import given
from hypothesis import strategies as st

from torchd_server.logs import LINE_LIMIT, JsonFormatter, TextFormatter


def record(message: str, level: int = logging.INFO, **extra: str) -> logging.LogRecord:
    made = logging.LogRecord("torchd.test", level, __file__, 1, "%s", (message,), None)
    vars(made).update(extra)
    return made


def test_text_says_when_how_bad_where_and_what() -> None:
    line = TextFormatter(colour=False).format(record("ready", model="bert", version="1.0", worker="3"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO    bert/1\.0 worker 3: ready", line)
    line = TextFormatter(colour=False).format(record("ready", model="bert", version="1.0", worker="3", rank="1"))
    assert line.endswith(" bert/1.0 worker 3 rank 1: ready")
    assert "\x1b[33m" in TextFormatter(colour=True).format(record("x", logging.WARNING))
    assert "\x1b" not in TextFormatter(colour=True).format(record("x"))


def test_json_has_the_same_as_fields() -> None:
    line = json.loads(JsonFormatter().format(record("ready", model="bert", version="1.0")))
    assert (line["level"], line["message"], line["model"], line["version"]) == ("info", "ready", "bert", "1.0")
    assert line["time"].endswith("+00:00")
    assert "worker" not in line


@given(st.text(max_size=100))
def test_nobodys_text_starts_a_line_of_ours(message: str) -> None:
    """S39: no forged lines, no terminal escapes."""
    first, *rest = TextFormatter(colour=False).format(record(message)).split("\n")
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} INFO", first)
    assert all(line.startswith("    ") for line in rest)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", first)
    assert JsonFormatter().format(record(message)).isascii()
    assert json.loads(JsonFormatter().format(record(message)))["message"] == message


def test_a_long_message_is_cut_and_its_length_told() -> None:
    for formatter in (TextFormatter(colour=False), JsonFormatter()):
        line = formatter.format(record("x" * 100_000))
        assert len(line) < LINE_LIMIT + 300
        assert "(100000 characters)" in line


def test_an_exception_comes_with_its_traceback_indented() -> None:
    try:
        raise ValueError("evil\x1b[2J")
    except ValueError:
        failed = logging.LogRecord("torchd", logging.ERROR, __file__, 1, "internal error", (), sys.exc_info())
    text = TextFormatter(colour=False).format(failed)
    assert "\n    ValueError: evil\\x1b[2J" in text
    assert "ValueError" in json.loads(JsonFormatter().format(failed))["exception"]
