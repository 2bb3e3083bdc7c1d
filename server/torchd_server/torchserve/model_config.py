"""model-config.yaml as TorchServe reads it: a key whose value will not do is left out, with a warning (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchd_server.settings import MODEL_CONFIG_KEYS, TORCHRUN_KEYS, ModelSettings, SettingInvalid

# Numbers that mean "the default" when they are not above 0.
_ABOVE_ZERO = frozenset({"batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "jobQueueSize"})
_ROOMY = ModelSettings(max_workers=64)


def lenient(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keys that will do, and one warning for each that will not."""
    found = dict(config)
    warnings = []
    for key in MODEL_CONFIG_KEYS:
        if found.get(key) is None:
            continue
        value, warning = _read(key, found[key])
        if warning:
            warnings.append(warning)
        if value is None:
            del found[key]
        else:
            found[key] = value
    return found, warnings + _read_torchrun(found) + _without_half_a_range(found)


def _read(key: str, value: Any) -> tuple[Any, str]:
    is_number = type(value) is int
    if is_number and value <= 0 and key in _ABOVE_ZERO:
        return None, f"{key}: {value} is not above 0, the default is taken"
    if is_number and value < 1 and key == "minWorkers":
        return 1, f"minWorkers: {value} is less than 1, which is taken"
    name = MODEL_CONFIG_KEYS[key]
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value}
    if name == "max_workers":
        given["min_workers"] = 0
    try:
        replace(_ROOMY, **given)
    except SettingInvalid as error:
        return None, f"{key}: {value!r} will not do (expected {error.expected}), the default is taken"
    return value, ""


def _read_torchrun(found: dict[str, Any]) -> list[str]:
    """Leaves out what will not do of the entry `torchrun`."""
    if not isinstance(found.get("torchrun"), Mapping):
        return []
    found["torchrun"] = torchrun = dict(found["torchrun"])
    warnings = []
    for key, name in TORCHRUN_KEYS.items():
        given: dict[str, Any] = {name: torchrun.get(key) or 0}
        try:
            replace(_ROOMY, **given)
        except SettingInvalid as error:
            value = torchrun.pop(key)
            warnings.append(f"torchrun.{key}: {value!r} will not do (expected {error.expected}), the default is taken")
    return warnings


def _without_half_a_range(found: dict[str, Any]) -> list[str]:
    """Takes the numbers of workers out unless both are there and fit: TorchServe reads both or none."""
    least, most = found.get("minWorkers"), found.get("maxWorkers")
    if (least, most) == (None, None) or (least is not None and most is not None and most >= least):
        return []
    for key in ("minWorkers", "maxWorkers"):
        found.pop(key, None)
    return [f"minWorkers {least} and maxWorkers {most} are not read: TorchServe needs both, the second not the lesser"]
