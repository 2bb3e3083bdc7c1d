"""TorchServe's config.properties: Java's properties syntax, and what each key means for our settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchd_server.settings import Address, ServerSettings, SettingInvalid

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Applied:
    """The settings with a file's keys in them, and what the operator should know about the rest."""

    settings: ServerSettings
    warnings: tuple[str, ...]


def parse(text: str) -> dict[str, str]:
    """Java's .properties syntax (java.util.Properties#load): continuations, escapes, `=`, `:` or blank as separator."""
    found = {}
    for line in _logical_lines(text):
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        if match:
            found[_unescape(match[1])] = _unescape(match[2])
    return found


def _logical_lines(text: str) -> Iterator[str]:
    line = ""
    for physical in re.split(r"\r\n|\r|\n", text):
        part = physical.lstrip(" \t\f")
        if not line and (not part or part[0] in "#!"):
            continue
        line += part
        if (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1]
            continue
        yield line
        line = ""
    if line:
        yield line


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        escaped = match[1]
        return chr(int(escaped[1:], 16)) if len(escaped) == 5 else _ESCAPES.get(escaped, escaped)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", character, text, flags=re.DOTALL)


def apply(settings: ServerSettings, path: Path) -> Applied:
    """`settings` with what the file says; raises SettingInvalid for a value that will not do, OSError for no file."""
    warnings = []
    # Java reads the file as Latin-1; anything else is written as \\uXXXX.
    for key, value in parse(path.read_text(encoding="latin-1")).items():
        apply_key = KEYS.get(key)
        if apply_key is not None:
            settings = _applied(apply_key, settings, key, value.strip())
        elif key in _WITHOUT_MEANING:
            warnings.append(f"{path}: {key} has no meaning here ({_WITHOUT_MEANING[key]})")
        elif key in _NOT_YET:
            warnings.append(f"{path}: {key} is TorchServe's and does nothing here yet")
        else:
            warnings.append(f"{path}: key {key} is not known and was ignored")
    return Applied(settings, tuple(warnings))


def _applied(apply_key: Apply, settings: ServerSettings, key: str, value: str) -> ServerSettings:
    try:
        return apply_key(settings, key, value)
    except SettingInvalid as error:
        if error.key == key:
            raise
        raise SettingInvalid(key, value, error.expected) from error


Apply = Callable[[ServerSettings, str, str], ServerSettings]


def _http_address(name: str) -> Apply:
    def apply_address(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        try:
            parts = urlsplit(value)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise SettingInvalid(key, value, "http://host:port") from error
        if parts.scheme != "http" or not host:
            raise SettingInvalid(key, value, "http://host:port")
        return _listen(settings, name, Address(host, port or 80))

    return apply_address


def _grpc_host(name: str) -> Apply:
    def apply_host(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        return _listen(settings, name, replace(getattr(settings.listeners, name), host=value))

    return apply_host


def _grpc_port(name: str) -> Apply:
    def apply_port(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        return _listen(settings, name, replace(getattr(settings.listeners, name), port=_number(key, value)))

    return apply_port


def _listen(settings: ServerSettings, name: str, address: Address) -> ServerSettings:
    return replace(settings, listeners=settings.listeners.at(name, address))


def _default(name: str) -> Apply:
    def apply_default(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        given: dict[str, Any] = {name: _number(key, value)}
        return replace(settings, model_defaults=replace(settings.model_defaults, **given))

    return apply_default


def _limit(name: str) -> Apply:
    def apply_limit(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        given: dict[str, Any] = {name: _number(key, value)}
        return replace(settings, limits=replace(settings.limits, **given))

    return apply_limit


def _switch(name: str) -> Apply:
    def apply_switch(settings: ServerSettings, key: str, value: str) -> ServerSettings:
        given: dict[str, Any] = {name: _boolean(key, value)}
        return replace(settings, **given)

    return apply_switch


def _model_store(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, model_store=Path(value))


def _workflow_store(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, workflow_store=Path(value))


def _default_handler(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, default_handler=value)


def _allowed_urls(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    patterns = tuple(pattern.strip() for pattern in value.split(",") if pattern.strip())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingInvalid(key, pattern, f"regular expressions; this is none: {error}") from error
    return replace(settings, allowed_urls=patterns)


def _load_models(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, models=tuple(entry.strip() for entry in value.split(",") if entry.strip()))


def _metrics_enabled(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, listeners=replace(settings.listeners, metrics_enabled=_boolean(key, value)))


def _workers_at_start(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return replace(settings, workers_at_start=_number(key, value) or None)


def _nothing(settings: ServerSettings, key: str, value: str) -> ServerSettings:
    return settings


def _number(key: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise SettingInvalid(key, value, "a whole number")
    return int(value)


def _boolean(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise SettingInvalid(key, value, "true or false")
    return value.lower() == "true"


KEYS: dict[str, Apply] = {
    "inference_address": _http_address("inference"),
    "management_address": _http_address("management"),
    "metrics_address": _http_address("metrics"),
    "grpc_inference_address": _grpc_host("grpc_inference"),
    "grpc_management_address": _grpc_host("grpc_management"),
    "grpc_inference_port": _grpc_port("grpc_inference"),
    "grpc_management_port": _grpc_port("grpc_management"),
    "model_store": _model_store,
    "load_models": _load_models,
    "default_workers_per_model": _workers_at_start,
    "default_response_timeout": _default("response_timeout"),
    "default_startup_timeout": _default("startup_timeout"),
    "job_queue_size": _default("job_queue_size"),
    "max_request_size": _limit("request_bytes"),
    "max_response_size": _limit("response_bytes"),
    "decode_input_request": _switch("decode_input"),
    "limit_max_image_pixels": _switch("limit_image_pixels"),
    "enable_model_api": _switch("model_api"),
    "enable_metrics_api": _metrics_enabled,
    "install_py_dep_per_model": _switch("install_dependencies"),
    "workflow_store": _workflow_store,
    "default_service_handler": _default_handler,
    "allowed_urls": _allowed_urls,
    "disable_token_authorization": _nothing,  # there are no tokens yet: nothing to switch off
}
_WITHOUT_MEANING = {
    "number_of_netty_threads": "there is no Netty",
    "netty_client_threads": "there is no Netty",
    "vmargs": "there is no JVM",
    "prefer_direct_buffer": "there is no JVM",
    "async_logging": "the log never blocks",
    "use_native_io": "there is no Netty",
    "io_ratio": "there is no Netty",
    "initial_worker_port": "workers use no ports",
}
_NOT_YET = frozenset(
    """blacklist_env_vars certificate_file cors_allowed_headers cors_allowed_methods cors_allowed_origin
    cpp_log_config cpu_launcher_args cpu_launcher_enable debug disable_system_metrics
    enable_envvars_config enable_grpc_ssl grpc_inference_max_connection_age_grace_ms
    grpc_inference_max_connection_age_ms grpc_management_max_connection_age_grace_ms
    grpc_management_max_connection_age_ms initial_distribution_port ipex_enable
    ipex_gpu_enable keystore keystore_pass keystore_type metric_time_interval metrics_config metrics_mode
    model_metrics_auto_detect model_server_home model_snapshot models number_of_gpu plugins_path private_key_file
    service_envelope system_metrics_cmd token_expiration_min ts_header_key_sequence_end ts_header_key_sequence_id
    ts_header_key_sequence_start ts_open_inference_protocol unregister_model_timeout use_env_allowed_urls""".split()  # noqa: SIM905 - forty strings in quotes would be harder to read
)
