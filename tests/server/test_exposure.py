"""Who may listen where, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torchd_server.exposure import exposure
from torchd_server.settings import API_NAMES, POSTURES, Address, ServerSettings, SettingInvalid, Tokens

ELSEWHERE = ["0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org", "127.evil.example"]


def settings(
    name: str, host: str, *, tls: bool = False, tokens: bool = True, posture: str = "torchd"
) -> ServerSettings:
    given = ServerSettings(posture=POSTURES[posture], tokens=Tokens(enabled=tokens))
    listeners = given.listeners.at(name, Address(host, 1, tls))
    return replace(given, listeners=listeners, grpc_tls=tls, allowed_urls=given.posture.allowed_urls)


@pytest.mark.parametrize("api", API_NAMES)
@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_machines_need_tls_and_tokens(api: str, host: str) -> None:
    """S22, E01."""
    assert exposure(settings(api, host, tls=True)) == []
    with pytest.raises(
        SettingInvalid, match=rf"{api}: .*TLS \(--tls-certificate and --tls-key\), or --insecure-listen"
    ):
        exposure(settings(api, host))
    with pytest.raises(SettingInvalid, match=rf"{api}: .*tokens \(--token-auth\), or --insecure-listen"):
        exposure(settings(api, host, tls=True, tokens=False))
    with pytest.raises(SettingInvalid, match=rf"{api}: .*TLS .* and tokens .*, or --insecure-listen"):
        exposure(settings(api, host, tokens=False))


@pytest.mark.parametrize("api", API_NAMES)
def test_insecure_listen_is_said_at_every_start(api: str) -> None:
    wish = replace(settings(api, "0.0.0.0", tokens=False), insecure_listen=True)
    said = exposure(wish)
    assert [line for line in said if api in line and "without TLS" in line]
    assert [line for line in said if "token authorization is off" in line]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_on_loopback_nothing_is_said_by_default(host: str) -> None:
    assert exposure(settings("inference", host)) == []


def test_a_metrics_port_that_is_not_opened_needs_nothing() -> None:
    given = settings("metrics", "0.0.0.0")
    assert exposure(replace(given, listeners=replace(given.listeners, metrics_enabled=False))) == []


def test_torchserve_opens_what_torchserve_opened_and_says_so() -> None:
    """Seed 001's configuration: 0.0.0.0 and nothing else."""
    wish = settings("inference", "0.0.0.0", tokens=False, posture="torchserve")
    said = "\n".join(exposure(replace(wish, model_api=True)))
    for words in (
        "inference listens on 0.0.0.0:1 without TLS",
        "authorization is off",
        "model API",
        "allowed_urls",
        "environment",
    ):
        assert words in said
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_tokens_that_are_never_good_are_a_mistake(minutes: float) -> None:
    wish = ServerSettings(tokens=Tokens(lifetime_minutes=minutes))
    with pytest.raises(SettingInvalid, match="token_expiration_min"):
        exposure(wish)
    assert "expired from the start" in "\n".join(exposure(replace(wish, posture=POSTURES["torchserve"])))
