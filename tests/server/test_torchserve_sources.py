"""Which source of a setting holds above which (reference section 3.1), and what the operator is told."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from torchd_server.settings import LogFiles, RegisteredModel, ServerSettings, SettingInvalid
from torchd_server.settings import ModelSettings as Model
from torchd_server.torchserve import snapshot
from torchd_server.torchserve.command_line import Flags, Refused, parse
from torchd_server.torchserve.config_properties import KEYS, apply
from torchd_server.torchserve.properties_format import parse as parse_properties
from torchd_server.torchserve.sources import Resolved, from_file, resolve


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for store in ("of_file", "of_flag", "of_environment", "store"):
        (tmp_path / store).mkdir()
    return tmp_path


def resolved(place: Path, *argv: str, **environment: str) -> Resolved:
    flags = parse(argv)
    return resolve(ServerSettings(), flags, environment, place)


def store_of(place: Path, *argv: str, **environment: str) -> str:
    store = resolved(place, *argv, **environment).settings.model_store
    assert store is not None
    return store.name


def said(found: Resolved) -> str:
    return "\n".join(found.notes)


def test_the_environment_holds_above_flags_and_those_above_the_file(place: Path) -> None:
    config = place / "config.properties"
    config.write_text("model_store=of_file\n")
    assert store_of(place, "--ncs") == "of_file"
    assert (
        store_of(place, "--ncs", "--model-store", str(place / "of_flag"), TS_MODEL_STORE="of_environment") == "of_flag"
    )
    config.write_text("model_store=of_file\nenable_envvars_config=true\n")
    argv = ("--ncs", "--model-store", str(place / "of_flag"))
    assert store_of(place, *argv) == "of_flag"
    assert store_of(place, *argv, TS_MODEL_STORE="of_environment") == "of_environment"


def test_the_file_is_the_environments_then_the_flags_then_the_snapshot_then_the_folders(place: Path) -> None:
    files = {}
    for number, name in enumerate(("environment", "flag", "config"), 1):
        files[name] = place / f"{name}.properties"
        files[name].write_text(f"model_store=store\njob_queue_size={number}\n")
    snapshot.write(
        place / "logs/config", "startup", {"model_store": "store", "job_queue_size": "4"}, [], datetime(2026, 1, 1)
    )

    def size(*argv: str, **environment: str) -> int:
        return resolved(place, *argv, **environment).settings.model_defaults.job_queue_size

    flag = ("--ts-config", str(files["flag"]))
    assert size(*flag, TS_CONFIG_FILE=str(files["environment"])) == 1
    assert size(*flag) == 2
    assert size() == 4
    assert size("--ncs") == 3
    assert size("--ncs", LOG_LOCATION="elsewhere") == 3
    assert "hides" in said(resolved(place))
    assert "(--ts-config)" in said(resolved(place, *flag))


def test_a_snapshot_lies_where_log_location_says(place: Path) -> None:
    made = resolved(
        place, "--model-store", str(place / "store"), LOG_LOCATION="here", METRICS_LOCATION="there"
    ).settings
    assert made.snapshots == place / "here/config"
    assert made.log_files == LogFiles(place / "here", place / "there")
    assert resolved(place, "--ncs", "--model-store", str(place / "store")).settings.snapshots is None


def test_names_between_dollars_are_the_environments(place: Path) -> None:
    (place / "config.properties").write_text("model_store=$$STORE$$\njob_queue_size=1$$ZEROS$$\n")
    found = resolved(place, "--ncs", STORE="store", ZEROS="00").settings
    assert found.model_defaults.job_queue_size == 100
    assert found.properties["job_queue_size"] == "1$$ZEROS$$"  # what a variable holds is not written into snapshots
    with pytest.raises(SettingInvalid, match="ZEROS, which is not set"):
        resolved(place, "--ncs", STORE="store")


def test_torchd_serve_reads_a_file_in_the_same_way(place: Path) -> None:
    (place / "c.properties").write_text("job_queue_size=$$SIZE$$\nenable_envvars_config=true\n")
    given = from_file(place / "c.properties", {"SIZE": "5", "TS_NUMBER_OF_GPU": "0"})
    settings = apply(ServerSettings(), given).settings
    assert (settings.model_defaults.job_queue_size, settings.gpus) == (5, 0)


def test_exactly_torchserves_variables_are_read(place: Path) -> None:
    """Section 3.1: the spelling of two, and those that have none."""
    (place / "config.properties").write_text("model_store=store\nenable_envvars_config=true\n")
    found = resolved(
        place,
        "--ncs",
        TS_TOKEN_EXPIRATION_TIME_MIN="7",
        TS_TOKEN_EXPIRATION_MIN="8",
        TS_METRIC_TIME_INTERVAL="9",
        TS_MODELS="{}",
        TS_HEADER_KEY_SEQUENCE_ID="sid",
        TS_OPEN_INFERENCE_PROTOCOL="other",
        TS_ALLOWED_URLS="https://x/.*",
    )
    assert found.settings.tokens.lifetime_minutes == 7
    assert found.settings.torchserve_metrics.interval_seconds == 60
    assert (found.settings.sequence_headers.id, found.settings.open_inference) == ("sid", False)
    assert found.settings.allowed_urls == ()
    without = {key.name for key in KEYS.values() if key.has_meaning and key.setting and not key.variable}
    assert without == {
        "models",
        "model_snapshot",
        "metric_time_interval",
        "allowed_urls",
        "plugins",
    }  # the last is ours


def test_allowed_urls_of_the_environment_need_their_own_switch(place: Path) -> None:
    (place / "config.properties").write_text("model_store=store\nallowed_urls=file://.*\nuse_env_allowed_urls=true\n")
    assert resolved(place, "--ncs", TS_ALLOWED_URLS="https://x/.*").settings.allowed_urls == ("https://x/.*",)
    assert resolved(place, "--ncs").settings.allowed_urls == ("file://.*",)


def test_open_inference_by_its_variable_needs_no_switch(place: Path) -> None:
    (place / "config.properties").write_text("model_store=store\nts_open_inference_protocol=false\n")
    assert resolved(place, "--ncs", TS_OPEN_INFERENCE_PROTOCOL="oip").settings.open_inference


def test_every_origin_is_named(place: Path) -> None:
    (place / "config.properties").write_text("model_store=store\nenable_envvars_config=true\njob_queue_size=5\n")
    origins = resolved(place, "--ncs", "--models", "a.mar", "b=c.mar", "--dt", TS_NUMBER_OF_GPU="0").origins
    assert origins["model_defaults.job_queue_size"].endswith("config.properties:3")
    assert (origins["models"], origins["tokens.enabled"]) == ("--models", "--disable-token-auth")
    assert origins["gpus"] == "environment TS_NUMBER_OF_GPU"
    assert "limits.request_bytes" not in origins


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "Missing mandatory parameter --model-store"),
        (("--ts-config", "no-such"), "--ts-config file not found: no-such"),
        (("--log-config", "no-such"), "--log-config file not found: /.*/no-such"),
        (("--model-store", "no-such"), "--model-store directory not found: no-such"),
        (("--model-store", "/", "--workflow-store", "no-such"), "--workflow-store directory not found: no-such"),
    ],
)
def test_what_is_missing_is_said_in_torchserves_words(place: Path, argv: tuple[str, ...], words: str) -> None:
    """Section 3.3."""
    with pytest.raises(Refused, match=words):
        resolved(place, *argv)


def test_flags_that_mean_nothing_are_taken_and_said(place: Path) -> None:
    (place / "cpp.config").write_text("")
    argv = (
        "--ncs",
        "--model-store",
        str(place / "store"),
        "--ppath",
        "jars",
        "--cpp-log-config",
        str(place / "cpp.config"),
    )
    told = said(resolved(place, *argv))
    assert "--plugins-path has no effect" in told
    assert "--cpp-log-config has no effect" in told


def test_both_names_of_a_flag_are_one_flag() -> None:
    assert parse(["--no-config-snapshots"]) == parse(["--ncs"]) == Flags(no_config_snapshots=True)
    assert parse(["--disable-token-auth"]) == parse(["--dt"])
    assert parse(["--enable-model-api"]) == parse(["--model-api-enabled"])
    assert parse(["--start"]) == parse([]) == Flags()


def test_a_log4j_file_gives_levels_and_says_what_it_does_not(place: Path) -> None:
    (place / "log4j2.xml").write_text(
        """<Configuration><Appenders><Console name="STDOUT"/></Appenders><Loggers>
        <Logger name="ACCESS_LOG" level="warn"/><Logger name="io.netty" level="error"/>
        <Root level="DEBUG"><AppenderRef ref="STDOUT"/></Root></Loggers></Configuration>"""
    )
    found = resolved(place, "--model-store", str(place / "store"), "--log-config", str(place / "log4j2.xml"))
    assert found.log_config.levels == {"ACCESS_LOG": "warning", "": "debug"}
    assert found.settings.log_files == LogFiles()
    assert "io.netty=error" in said(found)
    (place / "log4j2.xml").write_text("<Configuration>")
    with pytest.raises(Refused, match="is not log4j2 XML"):
        resolved(place, "--model-store", str(place / "store"), "--log-config", str(place / "log4j2.xml"))


# Snapshots.

AT = datetime(2026, 3, 4, 5, 6, 7, 89_000)
MODEL = RegisteredModel("m", "1.0", "m.mar", True, Model(min_workers=1, max_workers=2, batch_size=4))


def test_a_snapshot_has_torchserves_name_and_document(tmp_path: Path) -> None:
    """Section 3.4."""
    file = snapshot.write(
        tmp_path / "logs/config", "snapshot", {"inference_address": "http://127.0.0.1:80"}, [MODEL], AT
    )
    assert file.name == "20260304050607089-snapshot.cfg"
    assert r"inference_address=http\://127.0.0.1\:80" in file.read_text()
    settings = resolved_snapshot(file)
    assert settings["modelCount"] == 1
    assert settings["models"] == {
        "m": {
            "1.0": {
                "defaultVersion": True,
                "marName": "m.mar",
                "minWorkers": 1,
                "maxWorkers": 2,
                "batchSize": 4,
                "maxBatchDelay": 100,
                "responseTimeout": 120,
                "startupTimeout": 120,
                "runtimeType": "python",
            }
        }
    }
    assert os.stat(file).st_mode & 0o777 == 0o600


def resolved_snapshot(file: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(parse_properties(file.read_text())["model_snapshot"])
    return found


def test_the_newest_is_said_by_the_counter_and_not_by_the_clock(tmp_path: Path) -> None:
    """D11: the clock was set back between the two."""
    snapshot.write(tmp_path, "startup", {}, [], AT)
    second = snapshot.write(tmp_path, "snapshot", {}, [MODEL], AT.replace(year=2020))
    assert snapshot.choose(tmp_path).file == second


def test_a_torn_snapshot_is_passed_over_and_named(tmp_path: Path) -> None:
    """TS22, D08: whatever is cut off, the one before is taken."""
    first = snapshot.write(tmp_path, "startup", {"model_store": "s"}, [MODEL], AT)
    second = snapshot.write(tmp_path, "snapshot", {"model_store": "s"}, [MODEL], AT.replace(hour=6))
    whole = second.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        second.write_bytes(whole[:length])
        assert snapshot.choose(tmp_path) == snapshot.Choice(first, (second.name,))
    second.write_bytes(whole)
    assert snapshot.choose(tmp_path) == snapshot.Choice(second)


def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D08, D09: the disk is full when the file is made safe."""
    first = snapshot.write(tmp_path, "startup", {}, [MODEL], AT)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            snapshot.write(tmp_path, "snapshot", {}, [], AT.replace(hour=6))
    assert (list(tmp_path.iterdir()), snapshot.choose(tmp_path).file) == ([first], first)
    (tmp_path / ".20260304050607089-snapshot.cfg.new").write_text("half")  # of one who was killed
    snapshot.write(tmp_path, "startup", {}, [], AT.replace(hour=7))
    assert len(list(tmp_path.iterdir())) == 2


def test_five_are_kept_and_torchserves_own_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "20200101000000000-shutdown.cfg"
    theirs.write_text('model_snapshot={"modelCount":0,"models":{}}\n')
    for second in range(9):
        snapshot.write(tmp_path, "snapshot", {}, [MODEL], AT.replace(second=second))
    assert theirs.exists()
    assert len(list(tmp_path.glob("2026*.cfg"))) == snapshot.KEPT
    assert snapshot.choose(tmp_path).file == tmp_path / "20260304050608089-snapshot.cfg"


# Written by TorchServe 0.12.0 when it had started from a snapshot of ours, registered nothing and was stopped.
THEIRS = r"""#Saving snapshot
#Sat Nov 21 13:48:35 UTC 2026
inference_address=http\://127.0.0.1\:28180
default_workers_per_model=1
grpc_inference_port=27170
model_store=store
number_of_gpu=0
python=/usr/bin/python
model_snapshot={\n  "name"\: "20261121134835604-shutdown.cfg",\n  "modelCount"\: 1,\n  "created"\: 1795268915604,\n  \
    "models"\: {\n    "echo"\: {\n      "1.0"\: {\n        "defaultVersion"\: true,\n        \
    "marName"\: "echo.mar",\n        "minWorkers"\: 1,\n        "maxWorkers"\: 1,\n        "batchSize"\: 3,\n        \
    "maxBatchDelay"\: 100,\n        "responseTimeout"\: 120,\n        "startupTimeout"\: 120,\n        \
    "runtimeType"\: "python"\n      }\n    }\n  }\n}
enable_model_api=true
tsConfigFile=logs/config/20261121134828728-shutdown.cfg
version=0.12.0
workflow_store=store
torchd_snapshot_generation=3
"""


def test_a_snapshot_of_torchserves_is_read_and_follows_the_one_it_started_from(place: Path) -> None:
    """Section 3.4: there and back again."""
    folder = place / "logs" / "config"
    for _ in range(3):
        ours = snapshot.write(folder, "shutdown", {"model_store": "store"}, [MODEL], AT)
    (folder / "20261121134835604-shutdown.cfg").write_text(THEIRS)
    found = resolved(place, "--models", "n.mar")
    assert found.settings.snapshot is not None
    assert found.settings.snapshot["models"]["echo"]["1.0"]["marName"] == "echo.mar"
    assert found.settings.listeners.inference.port == 28180
    assert "n.mar not loaded by name" in said(found)
    assert not any("not known" in note or "no meaning" in note for note in found.notes)
    newer = snapshot.write(folder, "startup", {"model_store": "store"}, [MODEL], AT.replace(second=8))
    assert snapshot.choose(folder).file == newer != ours


@pytest.mark.parametrize("models", ["[" * 200_000, '{"models": ' * 100_000, "x" * (17 * 1024 * 1024)], ids=len)
def test_a_snapshot_that_cannot_be_one_does_not_stop_the_start(tmp_path: Path, models: str) -> None:
    """S53."""
    good = snapshot.write(tmp_path, "startup", {}, [], datetime(2026, 1, 1))
    bad = tmp_path / "20270101000000000-snapshot.cfg"
    bad.write_text(f"torchd_snapshot_generation=9\nmodel_snapshot={models}\n")
    assert snapshot.choose(tmp_path) == snapshot.Choice(good, (bad.name,))
