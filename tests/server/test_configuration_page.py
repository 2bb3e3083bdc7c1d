"""docs/configuration.md says of every key what the code's table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchd_server import start
from torchd_server.torchserve.config_properties import KEYS, UNMENTIONED, Key

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
DEFAULTS = start.defaults("torchserve", {})


def table() -> list[str]:
    """The rows of the page's table; paste them there when a key has changed."""
    applied = [_row(key) for key in KEYS.values() if key.has_meaning]
    without = [
        f"| `{key.name}` | {key.says} |" for key in KEYS.values() if not key.has_meaning and key.name not in UNMENTIONED
    ]
    return [*applied, *without]


def _row(key: Key) -> str:
    variable = f"`{key.variable}`" if key.variable else ""
    return f"| `{key.name}` | {variable} | {_default(key)} | {key.says} |"


def _default(key: Key) -> str:
    if not key.setting:
        return "false"
    value: Any = DEFAULTS
    for name in key.setting.split("."):
        value = getattr(value, name)
    if key.name.startswith("disable_"):
        value = not value
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ((), {}, ""):
        return ""
    return f"`{', '.join(value) if isinstance(value, tuple) else value}`"


def test_every_key_stands_on_the_page_as_the_code_has_it() -> None:
    page = PAGE.read_text().splitlines()
    missing = [row for row in table() if row not in page]
    assert not missing, "\n".join(["docs/configuration.md lacks:", *missing])


def test_the_page_has_no_key_that_the_code_has_not() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `") and line.split("`")[1] in KEYS]
    assert sorted(rows) == sorted(table())
