"""Every key of TorchServe's config.properties: the setting it becomes, or why it means nothing here.

The table is all there is: applying a file, `torchd check`, `torchd config show` and docs/configuration.md read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchd_server.settings import ServerSettings, SettingInvalid
from torchd_server.torchserve import properties_format
from torchd_server.torchserve.property_values import (
    Read,
    decimal,
    entries,
    expression,
    expressions,
    http_address,
    metrics_mode,
    milliseconds,
    models,
    number,
    number_or_none,
    path,
    read_value,
    snapshot,
    switch,
    switched_off,
    text,
)


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `setting` is the path of its setting ("" where it has none), `says` what it does or why it does nothing;
    `variable` is the environment variable that holds above it. `fallback` is taken, with a warning, for a value that
    will not do."""

    name: str
    says: str
    setting: str = ""
    read: Read | None = None
    variable: str = ""
    fallback: str | None = None

    @property
    def has_meaning(self) -> bool:
        """Whether it changes anything here."""
        return self.read is not None


@dataclass(frozen=True, slots=True)
class Given:
    """A property and where it came from ("config.properties:7", "environment TS_JOB_QUEUE_SIZE", "--models")."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The settings with properties in them, the origin of each setting they gave, what an operator should know."""

    settings: ServerSettings
    origins: dict[str, str]
    warnings: tuple[str, ...]


def _key(name: str, setting: str, read: Read, says: str, *, env: bool | str = True, fallback: str | None = None) -> Key:
    usual = f"TS_{name.removeprefix('ts_').upper()}" if env else ""
    variable = env if isinstance(env, str) else usual
    return Key(name, says, setting, read, variable, fallback)


def _nothing(name: str, why: str) -> Key:
    return Key(name, why)


_NETTY = "there is no Netty: one event loop serves, and workers do the work"
_JVM = "there is no JVM"
_IPEX = "no effect; a model's model-config.yaml has workerThreads, and its handler may call ipex itself"
_GRPC_AGE = "closes connections of this age, on both gRPC ports; in ms"

KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        _key(
            "inference_address", "listeners.inference", http_address(80, 443), "`http(s)://host[:port]`, `unix:/path`"
        ),
        _key("management_address", "listeners.management", http_address(8081, 8444), "the same"),
        _key("metrics_address", "listeners.metrics", http_address(8082, 8445), "the same"),
        _key("grpc_inference_address", "listeners.grpc_inference.host", text, "host of the gRPC inference port"),
        _key("grpc_management_address", "listeners.grpc_management.host", text, "host of the gRPC management port"),
        _key("grpc_inference_port", "listeners.grpc_inference.port", number, "gRPC inference port"),
        _key("grpc_management_port", "listeners.grpc_management.port", number, "gRPC management port"),
        _key("grpc_inference_max_connection_age_ms", "grpc_connection_age", milliseconds, _GRPC_AGE),
        _key("grpc_management_max_connection_age_ms", "grpc_connection_age", milliseconds, _GRPC_AGE),
        _key("grpc_inference_max_connection_age_grace_ms", "grpc_connection_grace", milliseconds, "then waits so long"),
        _key(
            "grpc_management_max_connection_age_grace_ms", "grpc_connection_grace", milliseconds, "then waits so long"
        ),
        _key("enable_grpc_ssl", "grpc_tls", switch, "TLS on both gRPC ports, with the two PEM files"),
        _key("ts_open_inference_protocol", "open_inference", switch, "serves the Open Inference Protocol"),
        _key("load_models", "models", entries, "`all`, or `file`, `name=file`, URL between commas; loaded at start"),
        _key("model_store", "model_store", path, "folder with the archives"),
        _key("workflow_store", "workflow_store", path, "folder with the workflows; the model store if not given"),
        _key("models", "model_settings", models, "settings by model and version, as JSON", env=False),
        _key(
            "model_snapshot", "snapshot", snapshot, "the models to start with; load_models is not read then", env=False
        ),
        _key(
            "default_workers_per_model",
            "workers_at_start",
            number_or_none,
            "workers of each model loaded at start (0: one per GPU, else per core), and the default of initial_workers",
        ),
        _key("default_response_timeout", "model_defaults.response_timeout", number, "seconds a request may take"),
        _key("default_startup_timeout", "model_defaults.startup_timeout", number, "seconds a worker may take to load"),
        _key("unregister_model_timeout", "unregister_timeout", number, "seconds an unregister call may take"),
        _key("job_queue_size", "model_defaults.job_queue_size", number, "requests that may wait, per model version"),
        _key("number_of_gpu", "gpus", number, "GPUs to use at most"),
        _key("max_request_size", "limits.request_bytes", number, "bytes of a request, REST and gRPC"),
        _key("max_response_size", "limits.response_bytes", number, "bytes of an answer"),
        _key(
            "limit_max_image_pixels", "limit_image_pixels", switch, "false lets vision handlers open images of any size"
        ),
        _key("decode_input_request", "decode_input", switch, "false gives handlers bytes whatever the content type"),
        _key("default_service_handler", "default_handler", text, "handler of archives that name none"),
        _key("service_envelope", "service_envelope", text, "body, json, kserve or kservev2, around every handler"),
        _key(
            "install_py_dep_per_model",
            "install_dependencies",
            switch,
            "installs an archive's requirements.txt into a folder of the model",
        ),
        _key(
            "allowed_urls",
            "allowed_urls",
            expressions,
            "expressions between commas that a URL must match; TS_ALLOWED_URLS needs use_env_allowed_urls",
            env=False,
        ),
        _key("use_env_allowed_urls", "", switch, "true: TS_ALLOWED_URLS holds above allowed_urls", env=False),
        _key(
            "blacklist_env_vars", "hidden_environment", expression, "variables that match in full are kept from workers"
        ),
        _key("cors_allowed_origin", "cors.origin", text, "Access-Control-Allow-Origin"),
        _key("cors_allowed_methods", "cors.methods", text, "Access-Control-Allow-Methods"),
        _key("cors_allowed_headers", "cors.headers", text, "Access-Control-Allow-Headers"),
        _key("keystore", "tls.keystore", path, "key and certificate of https addresses"),
        _key("keystore_pass", "tls.keystore_password", text, "its password"),
        _key("keystore_type", "tls.keystore_type", text, "PKCS12; JKS is refused, with the command that converts it"),
        _key("private_key_file", "tls.private_key", path, "PEM key, PKCS1 or PKCS8"),
        _key("certificate_file", "tls.certificate", path, "PEM certificate"),
        _key("enable_metrics_api", "listeners.metrics_enabled", switch, "false opens no metrics port"),
        _key("metrics_config", "torchserve_metrics.config", path, "a metrics.yaml"),
        _key("metrics_mode", "torchserve_metrics.mode", metrics_mode, "log, prometheus or legacy", fallback="log"),
        _key("model_metrics_auto_detect", "torchserve_metrics.auto_detect", switch, "keeps metrics metrics.yaml lacks"),
        _key("disable_system_metrics", "torchserve_metrics.system", switched_off, "true measures no CPU, memory, disk"),
        _key("metric_time_interval", "torchserve_metrics.interval_seconds", decimal, "seconds between them", env=False),
        _key("disable_token_authorization", "tokens.enabled", switched_off, "true asks for no tokens"),
        _key(
            "token_expiration_min",
            "tokens.lifetime_minutes",
            decimal,
            "minutes a token holds",
            env="TS_TOKEN_EXPIRATION_TIME_MIN",
        ),
        _key("plugins", "plugins", entries, "installed plug-ins to load, by name, between commas", env=False),
        _key("enable_model_api", "model_api", switch, "true lets clients register and unregister models"),
        _key("ts_header_key_sequence_id", "sequence_headers.id", text, "header that names a sequence"),
        _key("ts_header_key_sequence_start", "sequence_headers.start", text, "header that starts one"),
        _key("ts_header_key_sequence_end", "sequence_headers.end", text, "header that ends one"),
        _key(
            "enable_envvars_config",
            "",
            switch,
            "true: the TS_ variables of this table hold above everything",
            env=False,
        ),
        _nothing("number_of_netty_threads", _NETTY),
        _nothing("netty_client_threads", _NETTY),
        _nothing("use_native_io", _NETTY),
        _nothing("io_ratio", _NETTY),
        _nothing("vmargs", _JVM),
        _nothing("prefer_direct_buffer", _JVM),
        _nothing("async_logging", "the log never blocks a request"),
        _nothing("initial_worker_port", "workers have socketpairs and no ports"),
        _nothing("initial_distribution_port", "ranks of one worker meet at a port that is free"),
        _nothing("cpu_launcher_enable", _IPEX),
        _nothing("cpu_launcher_args", _IPEX),
        _nothing("ipex_enable", _IPEX),
        _nothing("ipex_gpu_enable", _IPEX),
        _nothing("cpp_log_config", "there is no C++ backend"),
        _nothing(
            "plugins_path", "Java plugins cannot be loaded; Python entry points torchd.endpoints, torchd.auth can"
        ),
        _nothing("model_server_home", "the server finds its own files"),
        _nothing("system_metrics_cmd", "no process is started: psutil reads them"),
        _nothing("debug", "workers start as always; `torchd run FILE` runs a handler under your debugger"),
        # What TorchServe writes into its snapshots about itself.
        _nothing("version", "TorchServe's own, in its snapshots"),
        _nothing("tsConfigFile", "TorchServe's own, in its snapshots"),
        _nothing("python", "workers run under this server's interpreter"),
    )
}
# Written by TorchServe or by us and never by a person: nobody needs to be told.
UNMENTIONED = frozenset({"version", "tsConfigFile", "python", "torchd_snapshot_generation"})


def apply(settings: ServerSettings, given: Iterable[Given]) -> Applied:
    """`settings` with the properties, the last of a key holds; raises SettingInvalid for one that will not do."""
    origins: dict[str, str] = {}
    warnings: list[str] = []
    for prop in {prop.key: prop for prop in given}.values():
        key = KEYS.get(prop.key)
        if key is None:
            if prop.key not in UNMENTIONED:
                warnings.append(f"{prop.origin}: key {prop.key} is not known and was ignored")
        elif key.read is None:
            if prop.key not in UNMENTIONED:
                warnings.append(f"{prop.origin}: {prop.key} has no meaning here ({key.says})")
        else:
            value, warning = _value(key, prop)
            warnings += warning
            if key.setting:
                settings = _put(settings, key, prop, value)
                origins[key.setting] = prop.origin
    return Applied(settings, origins, tuple(warnings))


def read_file(file: Path) -> list[Given]:
    """The properties of a file, each with its line; raises OSError."""
    lines = properties_format.read(file.read_text(encoding=properties_format.ENCODING))
    return [Given(prop.key, prop.value.strip(), f"{file}:{prop.line}") for prop in lines]


def _value(key: Key, prop: Given) -> tuple[Any, list[str]]:
    read = key.read or text
    try:
        return read_value(prop.key, prop.value, read), []
    except SettingInvalid as error:
        if key.fallback is None:
            raise SettingInvalid(f"{prop.origin}: {prop.key}", prop.value, error.expected) from error
        return read(key.fallback), [f"{prop.origin}: {error}; {key.fallback} is taken"]


def _put(settings: ServerSettings, key: Key, prop: Given, value: Any) -> ServerSettings:
    """`settings` with one value at the path of its key."""
    try:
        changed: ServerSettings = _replaced(settings, key.setting.split("."), value)
    except SettingInvalid as error:
        raise SettingInvalid(f"{prop.origin}: {prop.key}", prop.value, error.expected) from error
    return changed


def _replaced(owner: Any, names: list[str], value: Any) -> Any:
    name, *rest = names
    return replace(owner, **{name: _replaced(getattr(owner, name), rest, value) if rest else value})
