"""Where the settings of `torchserve` come from, and which source holds above which: decided here and nowhere else.

    defaults of the posture < one file < flags < TS_ variables (only if the file says enable_envvars_config=true)

The file is the first there is of: TS_CONFIG_FILE, --ts-config, the last snapshot (unless --ncs), ./config.properties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torchd_server.run_directory import default_run_directory
from torchd_server.settings import LogFiles, ServerSettings, SettingInvalid
from torchd_server.torchserve import snapshot
from torchd_server.torchserve.command_line import (
    Flags,
    Refused,
    as_properties,
    check_paths,
    chosen_config,
    without_meaning,
)
from torchd_server.torchserve.config_properties import KEYS, Given, apply, read_file
from torchd_server.torchserve.log_config import LogConfig, read_log_config

_VARIABLE = re.compile(r"\$\$(\w+)\$\$")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, the origin of each that is not a default, and what to tell the operator."""

    settings: ServerSettings
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    log_config: LogConfig = field(default_factory=LogConfig)


def resolve(defaults: ServerSettings, flags: Flags, environment: Mapping[str, str], cwd: Path) -> Resolved:
    """The settings of `torchserve`; raises Refused or SettingInvalid."""
    check_paths(flags, environment)
    log_config = read_log_config(flags.log_config) if flags.log_config is not None else LogConfig()
    folder = cwd / environment.get("LOG_LOCATION", "logs")
    chosen, notes = _choose(flags, environment, cwd, folder / "config")
    properties = read_file(chosen) if chosen is not None else []
    of_flags = as_properties(flags)
    given = [*_expanded(properties, environment), *of_flags]
    applied = apply(defaults, [*given, *_variables(given, environment)])
    settings, origins = applied.settings, dict(applied.origins)
    if protocol := environment.get("TS_OPEN_INFERENCE_PROTOCOL"):
        settings = replace(settings, open_inference=protocol == "oip")
        origins["open_inference"] = "environment TS_OPEN_INFERENCE_PROTOCOL"
    if settings.snapshot is not None and settings.models:
        notes.append(f"{', '.join(settings.models)} not loaded by name: the models of the snapshot are (--ncs, if not)")
    settings = replace(
        _with_stores(settings, cwd),
        run_dir=default_run_directory(environment, settings.listeners.management.port),
        log_files=LogFiles()
        if log_config.console_only
        else LogFiles(folder, _metrics_folder(environment, cwd, folder)),
        snapshots=None if flags.no_config_snapshots else folder / "config",
        tokens=replace(settings.tokens, file=cwd / "key_file.json"),
        properties={prop.key: prop.value for prop in (*properties, *of_flags) if prop.key in _REPEATED},
    )
    for name, variable in (("log_files.logs", "LOG_LOCATION"), ("log_files.metrics", "METRICS_LOCATION")):
        if environment.get(variable):
            origins[name] = f"environment {variable}"
    return Resolved(
        settings, origins, (*notes, *applied.warnings, *without_meaning(flags), *log_config.notes), log_config
    )


# What a snapshot repeats of the properties it was started with: everything but the models themselves.
_REPEATED = KEYS.keys() - {"model_snapshot"}


def _choose(flags: Flags, environment: Mapping[str, str], cwd: Path, snapshots: Path) -> tuple[Path | None, list[str]]:
    """The file to read, and one line that says which and why."""
    named, usual = chosen_config(flags, environment), cwd / "config.properties"
    if named is not None:
        said = "TS_CONFIG_FILE" if environment.get("TS_CONFIG_FILE") else "--ts-config"
        return named, [f"configuration from {named} ({said})"]
    found = snapshot.Choice(None) if flags.no_config_snapshots else snapshot.choose(snapshots)
    torn = [f"snapshot {name} is not complete and was passed over" for name in found.torn]
    if found.file is not None:
        hidden = f"; it hides {usual} (--ncs starts from that)" if usual.is_file() else ""
        return found.file, [*torn, f"configuration and models from the last snapshot, {found.file}{hidden}"]
    if usual.is_file():
        return usual, [*torn, f"configuration from {usual}"]
    return None, torn


def _expanded(properties: list[Given], environment: Mapping[str, str]) -> list[Given]:
    """With `$$NAME$$` replaced by the environment's variable."""
    return [replace(prop, value=_expand(prop, environment)) for prop in properties]


def _expand(prop: Given, environment: Mapping[str, str]) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise SettingInvalid(
                f"{prop.origin}: {prop.key}", match[0], f"an environment variable {match[1]}, which is not set"
            )
        return environment[match[1]]

    return _VARIABLE.sub(variable, prop.value)


def _variables(given: list[Given], environment: Mapping[str, str]) -> list[Given]:
    """The TS_ variables that hold: only a file or flag can let them."""
    last = {prop.key: prop.value.lower() for prop in given}
    found = []
    if last.get("enable_envvars_config") == "true":
        found += [
            Given(key.name, environment[key.variable], f"environment {key.variable}")
            for key in KEYS.values()
            if key.variable and environment.get(key.variable) is not None and key.name != "ts_open_inference_protocol"
        ]
    if last.get("use_env_allowed_urls") == "true" and "TS_ALLOWED_URLS" in environment:
        found.append(Given("allowed_urls", environment["TS_ALLOWED_URLS"], "environment TS_ALLOWED_URLS"))
    return found


def _with_stores(settings: ServerSettings, cwd: Path) -> ServerSettings:
    """With the stores checked; the workflow store is the model store if nobody says otherwise."""
    if settings.model_store is None:
        raise Refused("Missing mandatory parameter --model-store")
    stores = {
        "--model-store": settings.model_store,
        "--workflow-store": settings.workflow_store or settings.model_store,
    }
    for flag, store in stores.items():
        if not (cwd / store).is_dir():
            raise Refused(f"{flag} directory not found: {store}")
    model_store, workflow_store = ((cwd / store).resolve() for store in stores.values())
    return replace(settings, model_store=model_store, workflow_store=workflow_store)


def _metrics_folder(environment: Mapping[str, str], cwd: Path, logs: Path) -> Path:
    named = environment.get("METRICS_LOCATION")
    return cwd / named if named else logs
