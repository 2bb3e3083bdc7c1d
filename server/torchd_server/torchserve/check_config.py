"""Looks through a config.properties for keys that will behave differently here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torchd_server.settings import API_NAMES, Address, ServerSettings, SettingInvalid
from torchd_server.torchserve.config_properties import KEYS, UNMENTIONED, Given, apply, read_file
from torchd_server.torchserve.findings import Finding, Kind


def check_config(
    path: Path, defaults: ServerSettings, environment: Mapping[str, str]
) -> tuple[ServerSettings, list[Finding]]:
    """The settings that the file's good keys give, and what is to be said about the others."""
    settings, findings = defaults, []
    origins: dict[str, str] = {}
    for prop in read_file(path):
        key = KEYS.get(prop.key)
        if prop.key in UNMENTIONED:
            continue
        if key is None:
            findings.append(Finding(Kind.DIFFERS, prop.origin, f"{prop.key} is not known and will be ignored"))
        elif key.read is None:
            findings.append(Finding(Kind.DIFFERS, prop.origin, f"{prop.key} has no meaning here: {key.says}"))
        else:
            missing = [name for name in re.findall(r"\$\$(\w+)\$\$", prop.value) if name not in environment]
            if missing:
                findings.append(
                    Finding(Kind.NOTE, prop.origin, f"{prop.key} needs the variable {missing[0]} to be set")
                )
                continue
            settings = _tried(settings, prop, environment, findings, origins)
    return settings, [*findings, *_insecure(settings, origins, path)]


def _tried(
    settings: ServerSettings,
    prop: Given,
    environment: Mapping[str, str],
    findings: list[Finding],
    origins: dict[str, str],
) -> ServerSettings:
    value = re.sub(r"\$\$(\w+)\$\$", lambda match: environment[match[1]], prop.value)
    try:
        applied = apply(settings, [Given(prop.key, value, prop.origin)])
    except SettingInvalid as error:
        shown = f"{prop.key}={value}: expected {error.expected}"
        findings.append(Finding(Kind.REFUSED, prop.origin, f"the server will not start with {shown}"))
        return settings
    findings += [Finding(Kind.DIFFERS, prop.origin, warning) for warning in applied.warnings]
    origins |= applied.origins
    return applied.settings


def _insecure(settings: ServerSettings, origins: Mapping[str, str], path: Path) -> list[Finding]:
    found = []

    def say(setting: str, what: str) -> None:
        found.append(Finding(Kind.INSECURE, origins.get(setting, str(path)), what))

    if not settings.tokens.enabled:
        say("tokens.enabled", "disable_token_authorization=true: whoever reaches the ports may call")
    for name in API_NAMES:
        address: Address = getattr(settings.listeners, name)
        is_encrypted = settings.grpc_tls if name.startswith("grpc") else address.tls
        if not address.is_loopback and not is_encrypted:
            setting = f"listeners.{name}.host" if name.startswith("grpc") else f"listeners.{name}"
            say(setting, f"{address} can be reached from other machines, without TLS")
    if settings.model_api:
        say("model_api", "enable_model_api=true: who may manage models may run any code here")
    if settings.install_dependencies:
        say("install_dependencies", "install_py_dep_per_model=true: archives install packages, which run code")
    is_open = any(re.fullmatch(pattern, "https://example.org/x.mar") for pattern in settings.allowed_urls)
    if is_open and "allowed_urls" in origins:
        say("allowed_urls", "allowed_urls lets archives come from any host; name yours")
    if settings.cors.origin == "*":
        say("cors.origin", "cors_allowed_origin=*: any web page may call")
    if settings.tls.keystore is not None and settings.tls.keystore_password == "changeit":
        say("tls.keystore", "the keystore has TorchServe's default password")
    if not settings.limit_image_pixels:
        say("limit_image_pixels", "limit_max_image_pixels=false: a small file may become gigabytes of pixels")
    return found
