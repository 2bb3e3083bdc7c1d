"""How the text of a property becomes a value; each reader raises Unfit with what would do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchd_server.settings import METRICS_MODES, NAME, Address, SettingInvalid

Read = Callable[[str], Any]
# Java's Long.MAX_VALUE, which TorchServe takes for "never".
NEVER_MS = 2**63 - 1


class Unfit(ValueError):
    """The text will not do; the message says what would."""


def number(text: str) -> int:
    """A whole number from 0 up."""
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise Unfit("a whole number")
    return int(text)


def number_or_none(text: str) -> int | None:
    """A whole number; 0 leaves the choice to the server."""
    return number(text) or None


def decimal(text: str) -> float:
    """A number above 0."""
    if not re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text, re.ASCII) or not float(text):
        raise Unfit("a number above 0")
    return float(text)


def milliseconds(text: str) -> float | None:
    """Milliseconds as seconds; Java's greatest number stands for never."""
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII):
        raise Unfit("a number of milliseconds")
    return None if int(text) >= NEVER_MS else int(text) / 1000


def switch(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise Unfit("true or false")
    return text.lower() == "true"


def switched_off(text: str) -> bool:
    """true switches the setting off."""
    return not switch(text)


def text(value: str) -> str:
    """Anything."""
    return value


def path(value: str) -> Path:
    """A path; a relative one starts at the working directory."""
    if not value or "\0" in value:
        raise Unfit("a path")
    return Path(value)


def entries(value: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(entry.strip() for entry in value.split(",") if entry.strip())


def expression(value: str) -> str:
    """A regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise Unfit(f"a regular expression ({error})") from error
    return value


def expressions(value: str) -> tuple[str, ...]:
    """Regular expressions between commas."""
    return tuple(expression(entry) for entry in entries(value))


def metrics_mode(value: str) -> str:
    """One of the three modes."""
    if value.lower() not in METRICS_MODES:
        raise Unfit(" or ".join(METRICS_MODES))
    return value.lower()


def http_address(port: int, tls_port: int) -> Read:
    """A reader of `http(s)://host[:port]` and `unix:/path`, with the ports that stand for themselves."""
    expected = "http://host:port, https://host:port or unix:/path"

    def read(value: str) -> Address:
        if value.startswith("unix:"):
            socket = value.removeprefix("unix:")
            if not socket.startswith("/"):
                raise Unfit(expected)
            return Address("", 0, unix=Path(re.sub("^/+", "/", socket)))
        try:
            parts = urlsplit(value)
            host, given = parts.hostname, parts.port
        except ValueError as error:
            raise Unfit(expected) from error
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
            raise Unfit(expected)
        tls = parts.scheme == "https"
        return Address(host, given if given is not None else (tls_port if tls else port), tls)

    return read


def models(value: str) -> dict[str, dict[str, dict[str, Any]]]:
    """`{"name": {"version": {"minWorkers": 1, ...}}}`; a number that is not above 0 says nothing, as in TorchServe."""
    found = json_object(value)
    for name, versions in found.items():
        if not isinstance(versions, dict) or not all(isinstance(settings, dict) for settings in versions.values()):
            raise Unfit(f'{{"name": {{"version": {{...}}}}}}, which {name!r} is not')
    return {
        name: {
            version: {key: given for key, given in settings.items() if not _says_nothing(given)}
            for version, settings in versions.items()
        }
        for name, versions in found.items()
    }


def snapshot(value: str) -> dict[str, Any]:
    """TorchServe's `model_snapshot`: `{"models": {"name": {"version": {"marName": ..., ...}}}}`."""
    found = json_object(value)
    listed = found.get("models", {})
    if not isinstance(listed, dict):
        raise Unfit('a JSON object with "models"')
    for name, versions in listed.items():
        if not NAME.fullmatch(name) or not isinstance(versions, dict):
            raise Unfit(f'a JSON object with "models", of which {name!r} is none')
        for version, state in versions.items():
            if not isinstance(state, dict) or not isinstance(state.get("marName"), str):
                raise Unfit(f"a marName for version {version!r} of {name!r}")
    return found


def json_object(value: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise Unfit("a JSON object")
    return found


def _says_nothing(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and given <= 0


def read_value(key: str, value: str, read: Read) -> Any:
    """The value of a property; raises SettingInvalid, which names the key."""
    try:
        return read(value)
    except Unfit as error:
        raise SettingInvalid(key, value, str(error)) from error
    except SettingInvalid as error:  # an Address that cannot be
        raise SettingInvalid(key, value, error.expected) from error
