"""A model-config.yaml with the tuned keys changed, and everything else, comments included, left as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import yaml

from torchd_clients.tune.errors import ConfigInvalid
from torchd_clients.tune.space import CHOICES, ORDERED, Setting

FILE = "model-config.yaml"
_KEYS = {"threads": "workerThreads", "batch_size": "batchSize", "batch_delay": "maxBatchDelay", "device": "deviceType"}
_TOP_LEVEL = re.compile(r"(['\"]?)([A-Za-z_][\w-]*)\1\s*:")


def read_config(text: str) -> dict[str, Any]:
    """The document as a mapping; raises ConfigInvalid."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{FILE} of the archive cannot be read: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigInvalid(f"{FILE} of the archive is {type(document).__name__}; it must be a mapping")
    return document


def setting_of(config: Mapping[str, Any]) -> Setting:
    """How the model is served by its own configuration, under the daemon's defaults for what it leaves open."""
    usual, optimize = Setting(), config.get("optimize") or {}
    if not isinstance(optimize, Mapping):
        raise ConfigInvalid(f"{FILE} of the archive has optimize: {optimize!r}; it must be a mapping")
    compiled = optimize.get("compile")
    if isinstance(compiled, Mapping):
        compiled = compiled.get("mode") or "default"
    return Setting(
        # A model nobody scales has one worker.
        workers=max(config.get("minWorkers") or usual.workers, 1),
        threads=config.get("workerThreads") or usual.threads,
        batch_size=config.get("batchSize") or usual.batch_size,
        batch_delay=usual.batch_delay if (delay := config.get("maxBatchDelay")) is None else delay,
        device=config.get("deviceType") or usual.device,
        dtype=optimize.get("dtype") or usual.dtype,
        compile="default" if compiled is True else str(compiled or usual.compile),
        quantize=optimize.get("quantize") or usual.quantize,
    )


def merged(config: Mapping[str, Any], default: Setting, setting: Setting) -> dict[str, Any]:
    """The document with what `setting` has other than `default`."""
    found = deepcopy(dict(config))
    changed = [name for name in (*ORDERED, *CHOICES) if getattr(setting, name) != getattr(default, name)]
    for name in changed:
        value = getattr(setting, name)
        if name == "workers":
            # TorchServe reads both or none.
            found |= {"minWorkers": value, "maxWorkers": value}
        elif name in _KEYS:
            _put(found, _KEYS[name], value or None if name in ("threads", "device") else value)
        else:
            optimize = dict(found.get("optimize") or {})
            _put(optimize, name, _compile_entry(value) if name == "compile" else value or None)
            _put(found, "optimize", optimize or None)
    return found


def edited(text: str, wanted: Mapping[str, Any]) -> str:
    """The text with each key of the top level as wanted. Where text and lines do not go together, written anew."""
    before = read_config(text)
    lines, blocks = text.splitlines(), _blocks(text)
    changes = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
    for key in sorted((key for key in changes if key in blocks), key=lambda key: -blocks[key][0]):
        first, end = blocks[key]
        lines[first:end] = _lines(key, wanted[key], lines[first:end]) if key in wanted else []
    for key in (key for key in changes if key in wanted and key not in blocks):
        lines += _lines(key, wanted[key], [])
    written = "\n".join(lines) + "\n"
    try:
        is_right = (yaml.safe_load(written) or {}) == dict(wanted)
    except yaml.YAMLError:
        is_right = False
    return written if is_right else yaml.safe_dump(dict(wanted), sort_keys=False)


def _compile_entry(mode: str) -> Any:
    return {"mode": mode} if mode not in ("", "default") else True if mode else None


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    """None is a key that is not there: the daemon and the handler choose."""
    if value is not None:
        document[key] = value
    else:
        document.pop(key, None)


def _blocks(text: str) -> dict[str, tuple[int, int]]:
    """Each key of the top level, with the lines its value takes; comments and blanks behind it are not its own."""
    lines = text.splitlines()
    starts = [(number, found[2]) for number, line in enumerate(lines) if (found := _TOP_LEVEL.match(line))]
    blocks = {}
    ends = [first for first, _ in starts[1:]] + [len(lines)]
    for (first, key), end in zip(starts, ends, strict=False):
        while end > first + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith(("#", "---", "..."))):
            end -= 1
        blocks[key] = (first, end)
    return blocks


def _lines(key: str, value: Any, old: list[str]) -> list[str]:
    new = str(yaml.safe_dump({key: value}, sort_keys=False)).splitlines()
    comment = re.search(r"\s+#.*$", old[0]) if len(old) == 1 else None
    if comment and len(new) == 1:
        return [new[0] + comment[0]]
    return new
