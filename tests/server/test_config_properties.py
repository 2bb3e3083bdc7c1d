"""config.properties: Java's syntax, TorchServe's keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.settings import Address, Cors, SequenceHeaders, ServerSettings, SettingInvalid, Tls, Tokens
from torchd_server.settings import TorchServeMetrics as Metrics
from torchd_server.torchserve.config_properties import KEYS, apply, read_file
from torchd_server.torchserve.properties_format import ENCODING, parse, read, write


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


_ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(st.dictionaries(_ANY.filter(bool), _ANY, max_size=4))
def test_what_is_written_is_read_back(found: dict[str, str]) -> None:
    assert parse(write(found).encode(ENCODING).decode(ENCODING)) == found


def test_each_property_knows_its_line() -> None:
    text = "# one\n\na=1\nb=2\\\n  3\nc=4\n"
    assert [(found.key, found.line) for found in read(text)] == [("a", 3), ("b", 4), ("c", 6)]


def applied(tmp_path: Path, text: str) -> tuple[ServerSettings, tuple[str, ...]]:
    path = tmp_path / "config.properties"
    path.write_text(text)
    result = apply(ServerSettings(), read_file(path))
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


def test_what_has_no_meaning_and_what_is_unknown_is_said(tmp_path: Path) -> None:
    _, (netty, unknown) = applied(tmp_path, "number_of_netty_threads=4\nnumber_of_gnomes=5")
    assert "number_of_netty_threads has no meaning here" in netty
    assert "number_of_gnomes is not known" in unknown


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inference_address", "ftp://127.0.0.1:80"),
        ("inference_address", "unix:relative.sock"),
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
    assert apply(ServerSettings(), read_file(path)).settings.model_defaults.job_queue_size == 5


def test_every_other_key_reaches_its_setting(tmp_path: Path) -> None:
    """Section 3.2: what the parts that serve TLS, tokens, CORS, metrics and workflows read."""
    settings, warnings = applied(
        tmp_path,
        """inference_address=https://127.0.0.1
management_address=http://127.0.0.1
metrics_address=unix:///tmp/m.sock
enable_grpc_ssl=true
grpc_inference_max_connection_age_ms=1500
grpc_management_max_connection_age_grace_ms=9223372036854775807
ts_open_inference_protocol=false
workflow_store=/w
number_of_gpu=0
unregister_model_timeout=7
default_service_handler=h.py
service_envelope=json
install_py_dep_per_model=true
allowed_urls=https://a/.*,file://b
blacklist_env_vars=AWS_.*
cors_allowed_origin=*
cors_allowed_methods=GET
cors_allowed_headers=X
keystore=k.p12
keystore_pass=secret
keystore_type=JKS
private_key_file=k.pem
certificate_file=c.pem
metrics_config=m.yaml
metrics_mode=Prometheus
model_metrics_auto_detect=true
disable_system_metrics=true
metric_time_interval=5
disable_token_authorization=true
token_expiration_min=0.5
ts_header_key_sequence_id=a
ts_header_key_sequence_start=b
ts_header_key_sequence_end=c
models={"m": {"1.0": {"minWorkers": 2, "batchSize": 0, "runtimeType": "python"}}}
model_snapshot={"models": {"m": {"1.0": {"marName": "m.mar"}}}}
""",
    )
    listeners = settings.listeners
    assert listeners.inference == Address("127.0.0.1", 443, tls=True)
    assert listeners.management == Address("127.0.0.1", 8081)
    assert listeners.metrics == Address("", 0, unix=Path("/tmp/m.sock"))
    assert (settings.grpc_tls, settings.grpc_connection_age, settings.grpc_connection_grace) == (True, 1.5, None)
    assert (settings.open_inference, settings.workflow_store, settings.gpus) == (False, Path("/w"), 0)
    assert (settings.unregister_timeout, settings.default_handler, settings.service_envelope) == (7, "h.py", "json")
    assert (settings.install_dependencies, settings.allowed_urls) == (True, ("https://a/.*", "file://b"))
    assert (settings.hidden_environment, settings.cors) == ("AWS_.*", Cors("*", "GET", "X"))
    assert settings.tls == Tls(Path("c.pem"), Path("k.pem"), Path("k.p12"), "secret", "JKS")
    assert settings.torchserve_metrics == Metrics("prometheus", Path("m.yaml"), True, False, 5.0)
    assert settings.tokens == Tokens(False, None, 0.5)
    assert settings.sequence_headers == SequenceHeaders("a", "b", "c")
    assert settings.model_settings == {"m": {"1.0": {"minWorkers": 2, "runtimeType": "python"}}}
    assert settings.snapshot == {"models": {"m": {"1.0": {"marName": "m.mar"}}}}
    assert warnings == ()


def test_a_metrics_mode_that_is_none_is_log_as_in_torchserve(tmp_path: Path) -> None:
    settings, (warning,) = applied(tmp_path, "metrics_mode=loud")
    assert settings.torchserve_metrics.mode == "log"
    assert "log is taken" in warning


def test_the_table_says_something_of_every_key() -> None:
    assert all(key.says and (key.has_meaning or not key.setting) for key in KEYS.values())


def test_a_refusal_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"config\.properties:2: job_queue_size"):
        applied(tmp_path, "# queue\njob_queue_size=0")
