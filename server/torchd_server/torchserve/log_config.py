"""A log4j2 XML file, as far as it can mean something here: levels, and whether anything is written to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from torchd_server.torchserve.command_line import Refused

# log4j2's levels as Python's logging has them.
_LEVELS = {
    "all": "debug",
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "error": "error",
    "fatal": "critical",
    "off": "critical",
}
# TorchServe's loggers and ours; its streams of lines keep their names.
LOGGERS = {"": "", "org.pytorch.serve": "torchd_server", "MODEL_LOG": "torchd.model"} | {
    stream: stream for stream in ("ACCESS_LOG", "TS_METRICS", "MODEL_METRICS")
}
_CONSOLE = frozenset({"Console"})


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Levels by the name of our logger ("" is the root), and what of the file was not read."""

    levels: Mapping[str, str] = field(default_factory=dict)
    console_only: bool = False
    notes: tuple[str, ...] = ()


def read_log_config(path: Path) -> LogConfig:
    """Reads the file; raises Refused if it is no XML."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError) as error:
        raise Refused(f"--log-config {path} is not log4j2 XML: {error}") from error
    levels: dict[str, str] = {}
    ignored: list[str] = []
    for name, level in _loggers(root):
        if name not in LOGGERS or level not in _LEVELS:
            ignored.append(f"{name or 'Root'}={level}")
        else:
            levels[LOGGERS[name]] = _LEVELS[level]
    appenders = [_plain(found.tag) for group in root if _plain(group.tag) == "Appenders" for found in group]
    console_only = bool(appenders) and all(appender in _CONSOLE for appender in appenders)
    files = "no log files, console only" if console_only else "log files have TorchServe's names and layout"
    notes = [f"{path}: levels {_listed(levels)} are taken; {files}; patterns, filters and other appenders are not read"]
    if ignored:
        notes.append(f"{path}: {', '.join(ignored)} have no logger here")
    return LogConfig(levels, console_only, tuple(notes))


def _loggers(root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """(name, level) of each logger; log4j2 also reads names of elements in any case."""
    for element in root.iter():
        if _plain(element.tag).lower() in ("logger", "asynclogger"):
            yield element.get("name", ""), element.get("level", "info").lower()
        elif _plain(element.tag).lower() in ("root", "asyncroot"):
            yield "", element.get("level", "error").lower()


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]


def _listed(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{name or 'root'}={level}" for name, level in levels.items()) or "(none)"
