"""Settings: checked when built, merged in one order, and only on loopback."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.settings import (
    MODEL_CONFIG_KEYS,
    POSTURES,
    Address,
    Listeners,
    ModelSettings,
    SettingInvalid,
    check_name,
    merge_model_settings,
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1025),
        ("batch_size", True),
        ("batch_size", 1.0),
        ("batch_size", float("nan")),
        ("min_workers", -1),
        ("max_workers", 65),
        ("max_batch_delay_ms", 60_001),
        ("response_timeout", 0),
        ("job_queue_size", 10**18),
        ("batch_wait", "sometimes"),
        ("device_type", "tpu"),
        ("runtime", "bash"),
    ],
)
def test_a_value_that_will_not_do_is_refused_by_name(key: str, value: object) -> None:
    """S37: with what would do."""
    with pytest.raises(SettingInvalid, match=f"{key}: .* will not do; expected"):
        ModelSettings(**{"max_workers": 64, key: value})  # type: ignore[arg-type]


def test_the_call_stands_above_the_file_and_the_file_above_the_defaults() -> None:
    defaults = ModelSettings(batch_size=2, response_timeout=50, job_queue_size=7)
    file = {"batchSize": 4, "responseTimeout": 60, "handler": {"a": 1}}
    merged = merge_model_settings(defaults, file, {"batch_size": 8, "response_timeout": None})
    assert (merged.batch_size, merged.response_timeout, merged.job_queue_size) == (8, 60, 7)


def test_a_compiled_batch_size_waits_for_full_batches_unless_told_otherwise() -> None:
    compiled = merge_model_settings(ModelSettings(), {"compiledBatchSize": 8}, {})
    assert (compiled.batch_size, compiled.batch_wait) == (8, "full")
    told = merge_model_settings(ModelSettings(), {"compiledBatchSize": 8, "batchWait": "adaptive"}, {})
    assert told.batch_wait == "adaptive"


def test_the_most_workers_follow_the_least() -> None:
    assert merge_model_settings(ModelSettings(), {"minWorkers": 3}, {}).max_workers == 3


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*MODEL_CONFIG_KEYS, "compiledBatchSize"]), _ANYTHING)
def test_any_value_in_a_model_config_is_taken_or_refused_by_name(key: str, value: object) -> None:
    """S17: a bad document is the archive's mistake, never an error of ours."""
    try:
        merged = merge_model_settings(ModelSettings(), {key: value}, {})
    except SettingInvalid:
        return
    assert all(isinstance(number, int) for number in merged.device_ids)


@given(st.text(max_size=200))
def test_a_name_is_plain_or_refused(name: str) -> None:
    """S16."""
    try:
        assert check_name("model name", name) == name
    except SettingInvalid:
        assert not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name)
    else:
        assert "/" not in name
        assert not name.startswith((".", "-"))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", "x" * 129, "a\r\n", "\x1b[0m", "-rf", ".hidden", "a b", "%2e", "a\n"]
)
def test_a_hostile_name_is_refused(name: str) -> None:
    """S16."""
    with pytest.raises(SettingInvalid, match="model name"):
        check_name("model name", name)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_every_way_to_say_this_machine_will_do(host: str) -> None:
    assert Listeners().at("inference", Address(host, 0)).inference.host == host


def test_a_name_that_only_looks_like_loopback_is_none() -> None:
    """A name is resolved elsewhere: 127.evil.example may be any address."""
    assert not Address("127.evil.example", 1).is_loopback


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert (str(Address("::1", 80)), str(Address("127.0.0.1", 80))) == ("[::1]:80", "127.0.0.1:80")
    with pytest.raises(SettingInvalid, match="port"):
        Address("127.0.0.1", 65_536)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("PATH", True),
        ("OMP_NUM_THREADS", True),
        ("HF_HOME", True),
        ("HF_TOKEN", False),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("LD_PRELOAD", False),
    ],
)
def test_secrets_do_not_reach_workers(name: str, passes: bool) -> None:
    """S43: `torchserve` passes everything on, as TorchServe does."""
    allowed = POSTURES["torchd"].worker_environment
    assert allowed is not None
    assert bool(re.fullmatch(allowed, name)) == passes
    assert POSTURES["torchserve"].worker_environment is None
