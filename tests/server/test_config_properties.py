"""config.properties: Java's syntax, TorchServe's keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.settings import Address, ServerSettings, SettingInvalid, TorchServeMetrics
from torchd_server.torchserve.config_properties import apply, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=b", {"a": "b"}),
        ("a = b", {"a": "b"}),
        ("a:b", {"a": "b"}),
        ("a b c", {"a": "b c"}),
        ("  a=b  ", {"a": "b  "}),
        ("a==b", {"a": "=b"}),
        ("a", {"a": ""}),
        ("# a=b\n! c=d\n\n  # e=f", {}),
        ("a=b#c", {"a": "b#c"}),
        ("a=b\\\n   c", {"a": "bc"}),
        ("a=b\\\n#c", {"a": "b#c"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("a\\=b=c", {"a=b": "c"}),
        ("a\\ b=c", {"a b": "c"}),
        ("a=\\u00e9\\t\\n", {"a": "é\t\n"}),
        ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("a=1\na=2", {"a": "2"}),
        ('models={\\\n  "m": {\\\n    "1.0": {}\\\n  }\\\n}', {"models": '{"m": {"1.0": {}}}'}),
    ],
)
def test_javas_syntax_is_read(text: str, found: dict[str, str]) -> None:
    assert parse(text) == found


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


_WORDS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=10)


@given(st.dictionaries(_WORDS, _WORDS, max_size=4))
def test_escaped_properties_come_back_as_they_were(found: dict[str, str]) -> None:
    assert parse("\n".join(f"{escaped(key)}={escaped(value)}" for key, value in found.items() if key)) == {
        key: value for key, value in found.items() if key
    }


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert all(isinstance(value, str) for value in parse(text).values())


def applied(tmp_path: Path, text: str) -> tuple[ServerSettings, tuple[str, ...]]:
    path = tmp_path / "config.properties"
    path.write_text(text)
    result = apply(ServerSettings(), path)
    return result.settings, result.warnings


def test_torchserves_keys_become_settings(tmp_path: Path) -> None:
    settings, warnings = applied(
        tmp_path,
        """inference_address=http://127.0.0.1:9080
management_address=http://localhost:9081
metrics_address=http://127.0.0.1:9082
grpc_inference_port=9070
grpc_management_address=127.0.0.2
model_store=/models
load_models=a.mar, b=c.mar
default_workers_per_model=3
default_response_timeout=33
job_queue_size=44
max_request_size=55
enable_metrics_api=false
enable_model_api=false
decode_input_request=FALSE
disable_token_authorization=true
""",
    )
    listeners = settings.listeners
    assert (listeners.inference, listeners.management) == (Address("127.0.0.1", 9080), Address("localhost", 9081))
    assert (listeners.grpc_inference.port, listeners.grpc_management) == (9070, Address("127.0.0.2", 7071))
    assert (settings.model_store, settings.models) == (Path("/models"), ("a.mar", "b=c.mar"))
    assert (settings.workers_at_start, settings.model_defaults.response_timeout) == (3, 33)
    assert (settings.model_defaults.job_queue_size, settings.limits.request_bytes) == (44, 55)
    assert (listeners.metrics_enabled, settings.model_api, settings.decode_input) == (False, False, False)
    assert warnings == ()


def test_the_keys_of_the_metrics_become_settings(tmp_path: Path) -> None:
    """Reference 3.2: an unknown metrics_mode is log."""
    settings, warnings = applied(
        tmp_path,
        """metrics_mode=PROMETHEUS
metrics_config=/etc/metrics.yaml
model_metrics_auto_detect=true
disable_system_metrics=true
metric_time_interval=5
""",
    )
    wanted = TorchServeMetrics(
        "prometheus", Path("/etc/metrics.yaml"), auto_detect=True, system=False, interval_seconds=5
    )
    assert settings.torchserve_metrics == wanted
    assert warnings == ()
    assert applied(tmp_path, "metrics_mode=statsd")[0].torchserve_metrics.mode == "log"
    with pytest.raises(SettingInvalid, match="metric_time_interval"):
        applied(tmp_path, "metric_time_interval=0")


def test_what_has_no_meaning_and_what_is_unknown_is_said(tmp_path: Path) -> None:
    _, (netty, unknown) = applied(tmp_path, "number_of_netty_threads=4\nnumber_of_gnomes=5")
    assert "number_of_netty_threads has no meaning here" in netty
    assert "number_of_gnomes is not known" in unknown


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inference_address", "https://127.0.0.1:80"),
        ("inference_address", "127.0.0.1:80"),
        ("inference_address", "http://127.0.0.1:99999"),
        ("inference_address", "http://127.0.0.1:x"),
        ("grpc_inference_port", "-1"),
        ("grpc_inference_port", "seven"),
        ("job_queue_size", "0"),
        ("default_response_timeout", "1e3"),
        ("enable_metrics_api", "yes"),
        ("decode_input_request", "1"),
    ],
)
def test_a_value_that_will_not_do_is_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SettingInvalid):
        applied(tmp_path, f"{key}={value}")


def test_a_file_in_javas_own_encoding_is_read(tmp_path: Path) -> None:
    """java.util.Properties reads ISO 8859-1: a comment with an umlaut must not stop the server."""
    path = tmp_path / "config.properties"
    path.write_bytes("# für Tests\njob_queue_size=5\n".encode("latin-1"))
    assert apply(ServerSettings(), path).settings.model_defaults.job_queue_size == 5
