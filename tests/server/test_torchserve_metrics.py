"""TorchServe's metrics (reference section 9), held against what TorchServe 0.12 said (golden_metrics/)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from torchd_protos.frames import Header, Metric
from torchd_server.logs import Line
from torchd_server.torchserve import metrics_config, metrics_text
from torchd_server.torchserve.access_log import AccessLog
from torchd_server.torchserve.log_files import ConsoleFormatter, LineFormatter
from torchd_server.torchserve.metric_families import Distribution, FamilySnapshot
from torchd_server.torchserve.metrics_config import MetricsConfigInvalid, MetricSpec
from torchd_server.torchserve.metrics_log import MetricsLog
from torchd_server.torchserve.metrics_text import number
from torchd_server.torchserve.recorder import SERIES_AT_MOST, Recorder

GOLDEN = Path(__file__).parent / "golden_metrics"
SAMPLE = re.compile(r"(\w+)\{(.*)\} (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)",')
CONFIG = metrics_config.read(GOLDEN / "metrics.yaml")
OWN = metrics_config.read(None)


def recorder(
    mode: str, *, auto_detect: bool = False, lines: Lines | None = None, config: Path | None = None
) -> Recorder:
    log = MetricsLog(lines.write, "vm", lambda: 1795267546.9) if lines is not None else None
    return Recorder(mode, metrics_config.read(config or GOLDEN / "metrics.yaml"), auto_detect, "vm", log)


class Lines:
    """What was written, as (log, thread, text)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def write(self, log: str, thread: str, text: Callable[[], str]) -> None:
        self.found.append((log, thread, text()))

    def texts(self, log: str) -> list[str]:
        return [text for name, _, text in self.found if name == log]


def metric(name: str, value: float, unit: str, kind: str, request: str = "r1", **labels: str) -> Metric:
    return Metric(name, value, unit, kind, [Header(*label) for label in labels.items()], request)


def page(of: Recorder, *names: str) -> str:
    return of.snapshot()(names).decode()


def everything(of: Recorder) -> None:
    """The facts behind the recorded page."""
    of.requested("mm", "")
    of.answered("mm", "", 0.001681182, 0.013797616)
    of.thread_time(0.0125)
    of.worker_loaded("19250", "mm", "1.0", 2.342)
    of.http_answered(200)
    of.http_answered(404)
    of.system([(name, None, 1.0) for name in CONFIG.server if name.startswith(("CPU", "Disk", "Memory"))])
    usual = {"ModelName": "mm", "Level": "Model"}
    of.of_handler("mm", "1.0", "19250", metric("MyCounter", 2, "Count", "counter", Colour="red", **usual))
    of.of_handler("mm", "1.0", "19250", metric("MyTime", 12.5, "Milliseconds", "gauge", **usual))
    of.of_handler("mm", "1.0", "19250", metric("MySize", 3, "Megabytes", "gauge", **usual))
    of.of_handler("mm", "1.0", "19250", metric("MyPercent", 50.5, "Percent", "gauge", **usual))
    of.of_handler("mm", "1.0", "19250", metric("MyError", 1, "unit", "counter", "", Level="Error"))
    of.of_handler("mm", "1.0", "19250", metric("MyHist", 0.02, "Seconds", "histogram", **usual))
    of.of_handler("mm", "1.0", "19250", metric("HandlerTime", 7.25, "Milliseconds", "gauge", **usual))
    of.of_handler("mm", "1.0", "19250", metric("InitCount", 1, "Count", "counter", "", **usual))
    of.of_handler("mm", "1.0", "19250", metric("PredictionTime", 0.51, "Milliseconds", "gauge", **usual))


def golden_families() -> Iterator[tuple[FamilySnapshot, str]]:
    """Each family of the recorded page as a value, and its text."""
    text = (GOLDEN / "metrics.txt").read_text()
    for block in re.split(r"(?=# HELP )", text)[1:]:
        head = re.match(r"# HELP (\w+) .* unit: (.*)\n# TYPE \w+ (\w+)\n", block)
        assert head is not None
        name, unit, kind = head.groups()
        found = [match.groups() for match in SAMPLE.finditer(block)]
        spec = CONFIG.server.get(name) or CONFIG.handlers[name]
        assert (spec.kind, spec.unit) == (kind, unit), "our metrics.yaml says the same"
        if kind != "histogram":
            series = {tuple(value for _, value in LABEL.findall(labels)): float(value) for _, labels, value in found}
            yield FamilySnapshot(spec, dict(series)), block
            continue
        sums = [int(float(value)) for sample, _, value in found if sample.endswith("_bucket")]
        counts = tuple(here - before for before, here in zip([0, *sums], sums, strict=False))
        labels = tuple(value for label, value in LABEL.findall(found[0][1]) if label != "le")
        yield FamilySnapshot(spec, {labels: Distribution(counts, float(found[-1][2]))}), block


def test_the_page_is_written_as_torchserve_writes_it() -> None:
    """simpleclient 0.9.0: the comma at the end of the labels, no `_total`, Java's numbers."""
    families = list(golden_families())
    assert len(families) == len(CONFIG.server) + len(CONFIG.handlers)
    for family, block in families:
        assert metrics_text.text([family]).decode() == block


def test_the_same_facts_give_the_same_series() -> None:
    def series(text: str) -> set[str]:
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    of = recorder("prometheus")
    everything(of)
    golden = (GOLDEN / "metrics.txt").read_text()
    assert series(page(of)) == series(golden)
    assert {line for line in page(of).splitlines() if line.startswith("#")} == {
        line for line in golden.splitlines() if line.startswith("#")
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.0"),
        (0.0, "0.0"),
        (22813.1015625, "22813.1015625"),
        (1e7, "1.0E7"),
        (123456789.5, "1.234567895E8"),
        (0.00025, "2.5E-4"),
        (-1e-9, "-1.0E-9"),
        (math.inf, "+Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_javas(value: float, text: str) -> None:
    assert number(value) == text


def test_names_choose_among_the_samples() -> None:
    """Reference 2.4: `?name[]=` names samples, not families."""
    of = recorder("prometheus")
    everything(of)
    chosen = page(of, "Requests2XX", "MyHist_count", "MyHist")
    assert [line for line in chosen.splitlines() if not line.startswith("#")] == [
        'Requests2XX{Level="Host",Hostname="vm",} 1.0',
        'MyHist_count{ModelName="mm",Level="Model",Hostname="vm",} 1.0',
    ]
    assert page(of, "Nothing") == ""


def test_the_log_mode_has_an_empty_page_and_all_lines() -> None:
    lines = Lines()
    of = recorder("log", lines=lines, auto_detect=True)
    everything(of)
    assert page(of) == ""
    golden = (GOLDEN / "ts_metrics.log").read_text()
    for name in CONFIG.server:
        if not name.startswith("GPU") and name != "Requests5XX":
            assert any(text.startswith(f"{name}.") for text in lines.texts("TS_METRICS")), name
    ours = {shape(line) for line in lines.texts("TS_METRICS")}
    theirs = {shape(line.partition(" - ")[2]) for line in golden.splitlines()}
    assert theirs <= ours


def shape(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"W-\d+", "W-N", re.sub(r":[\d.E]+\|#", ":V|#", line, count=1)).rpartition("timestamp")[0]


def test_handlers_lines_are_torchserves() -> None:
    """The recorded lines, from the same values; only detected metrics have their unit in full."""
    lines = Lines()
    of = recorder("legacy", auto_detect=True, lines=lines, config=metrics_config.OWN_FILE)
    everything(of)
    golden = [line.partition(" - ")[2] for line in (GOLDEN / "model_metrics.log").read_text().splitlines()]
    theirs = [re.sub(r"requestID:[0-9a-f-]{36}", "requestID:r1", line) for line in golden]
    assert lines.texts("MODEL_METRICS") == theirs


def test_the_legacy_mode_shows_three_and_logs_the_rest() -> None:
    lines = Lines()
    of = recorder("legacy", lines=lines)
    everything(of)
    shown = re.findall(r"# TYPE (\w+) counter", page(of))
    assert len(shown) == 3
    assert all(name.startswith("ts_") for name in shown)
    assert not any(text.startswith("ts_") for text in lines.texts("TS_METRICS"))
    assert any(text.startswith("QueueTime.") for text in lines.texts("TS_METRICS"))


def test_what_the_configuration_does_not_know_is_not_recorded(tmp_path: Path) -> None:
    config = tmp_path / "metrics.yaml"
    config.write_text("ts_metrics:\n  gauge:\n    - {name: QueueTime, unit: Seconds, dimensions: [A, Hostname]}\n")
    lines = Lines()
    for mode in ("log", "prometheus"):
        of = recorder(mode, lines=lines, config=config)
        everything(of)
    assert page(of).splitlines()[1:] == ["# TYPE QueueTime gauge", 'QueueTime{A="Host",Hostname="vm",} 1.0']
    assert [text.partition("|#hostname")[0] for _, _, text in lines.found] == ["QueueTime.Seconds:1.0|#A:Host"]


def test_undeclared_metrics_are_detected_when_asked() -> None:
    of = recorder("prometheus", auto_detect=True)
    everything(of)
    assert 'MySize{ModelName="mm",Level="Model",Hostname="vm",} 3.0' in page(of)
    assert "# HELP MyError Torchserve prometheus counter metric with unit: unit" in page(of)


def test_random_labels_stop_at_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """S41, E22: 10,000 values of a label."""
    of = recorder("prometheus", auto_detect=True)
    for index in range(10_000):
        of.of_handler("mm", "1.0", "1", metric("Many", 1, "Count", "counter", User=f"u{index}" + "x" * 10_000))
    of.of_handler("other", "1.0", "2", metric("Many", 1, "Count", "counter", User="mine"))
    assert page(of).count("\nMany{") == SERIES_AT_MOST + 1
    assert len(page(of)) < 1 << 20
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1000 series already" in warning.getMessage()


def test_a_worker_that_is_started_again_and_again_leaves_no_series_behind() -> None:
    """P07: nor does it use up what its handler's metrics may have."""
    of = recorder("prometheus", auto_detect=True)
    for worker in range(SERIES_AT_MOST + 1):
        of.worker_loaded(str(worker), "mm", "1.0", 0.5)
        assert page(of).count("\nWorkerLoadTime{") == 1
        of.worker_gone(str(worker), "mm", "1.0")
    of.of_handler("mm", "1.0", "1", metric("Mine", 1, "Count", "counter"))
    assert page(of).count("\nMine{") == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (metric("QueueTime", 1, "ms", "gauge", Level="x"), "the server has a metric of this name"),
        (metric("torchd_mine", 1, "ms", "gauge"), "the server has a metric of this name"),
        (metric("no name", 1, "ms", "gauge"), "a name must be"),
        (metric("M", 1, "ms", "gauge", **{"a-b": "x"}), "dimension 'a-b'"),
        (metric("MyTime", 1, "ms", "counter", ModelName="m", Level="l"), "it is a gauge and was given as a counter"),
        (metric("MyTime", 1, "ms", "gauge", Level="l"), "its dimensions are ModelName, Level"),
        (metric("M", 1, "ms", "summary"), "it must be one of counter, gauge, histogram"),
    ],
)
def test_a_metric_that_cannot_be_recorded_is_said_once(
    bad: Metric, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    of = recorder("prometheus", auto_detect=True)
    before = page(of)
    of.of_handler("mm", "1.0", "1", bad)
    of.of_handler("mm", "1.0", "1", bad)
    assert page(of) == before
    [record] = caplog.records
    assert reason in record.getMessage()


def test_label_values_cannot_break_out() -> None:
    """S41: a quote, a line end, a backslash."""
    of = recorder("prometheus", auto_detect=True)
    of.of_handler("mm", "1.0", "1", metric("Evil", 1, "u\nX 1", "gauge", Who='a"} 1\nB{c="\\'))
    assert 'Evil{Who="a\\"} 1\\nB{c=\\"\\\\",Hostname="vm",} 1.0' in page(of)
    assert r"unit: u\nX 1" in page(of)


def test_the_series_of_a_model_go_with_it() -> None:
    of = recorder("prometheus", auto_detect=True)
    empty = page(recorder("prometheus"))
    for version in ("1.0", "2.0"):
        of.requested("mm", version)
        of.worker_loaded("7", "mm", version, 1.0)
        of.of_handler("mm", version, "7", metric("Own", 1, "Count", "counter", Level="Model"))
    of.forget("mm", "1.0", is_last=False)
    assert 'model_version="1.0"' not in page(of)
    assert "W-7-mm_1.0" not in page(of)
    assert 'model_version="2.0"' in page(of)
    assert "Own{" in page(of)
    of.forget("mm", "2.0", is_last=True)
    assert page(of) == empty


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ts_metrics: [", "cannot be read"),
        ("- 1", "must have the sections"),
        ("ts_metrics: {timer: []}", "must hold lists named counter, gauge, histogram"),
        ("model_metrics: {gauge: [{name: A}]}", "must have name, unit and dimensions"),
        ("model_metrics: {gauge: [{name: 'a b', unit: ms, dimensions: []}]}", "no name of a metric"),
        ("model_metrics: {gauge: [{name: A, unit: ms, dimensions: [a, 'b c']}]}", "no name of a dimension"),
        ("model_metrics: {gauge: [{name: A, unit: ms, dimensions: [__a]}]}", "no name of a dimension"),
        ("model_metrics: {gauge: [{name: A, unit: ms, dimensions: [a, a]}]}", "different dimensions"),
        ("ts_metrics: {gauge: [{name: QueueTime, unit: ms, dimensions: [A]}]}", "has 2 dimensions here, not 1"),
        (
            "ts_metrics: {gauge: [{name: A, unit: ms, dimensions: [a, b]}, {name: A, unit: s, dimensions: [a, b]}]}",
            "stands there twice",
        ),
    ],
)
def test_a_bad_configuration_says_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    config = tmp_path / "metrics.yaml"
    config.write_text(text)
    with pytest.raises(MetricsConfigInvalid, match=re.escape(reason)) as raised:
        metrics_config.read(config)
    assert str(config) in str(raised.value)


def test_our_metrics_are_torchserves() -> None:
    """The 21 of reference section 9."""
    assert len(OWN.server) == 19
    assert OWN.handlers == {
        name: MetricSpec(name, "gauge", "ms", ("ModelName", "Level", "Hostname"))
        for name in ("HandlerTime", "PredictionTime")
    }
    assert '"name": "HandlerTime", "unit": "ms", "dimensions": ["ModelName", "Level"]' in OWN.handlers_json()


# The lines around the texts.


def line(log: str, thread: str, text: str, moment: str) -> logging.LogRecord:
    return Line(log, thread, lambda: text, datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S,%f").timestamp()).record()


def test_the_access_log_is_torchserves() -> None:
    """Reference section 9: each recorded line, made anew from what it says."""
    lines = Lines()
    log = AccessLog(lines.write)
    golden = (GOLDEN / "access_log.log").read_text().splitlines()
    for text in golden:
        match = re.fullmatch(r'(\S+) - /(\S+) "(\S+) (\S+) HTTP/(\S+)" (\d+) (\d+)', text)
        assert match is not None
        moment, peer, method, target, version, status, milliseconds = match.groups()
        seconds = int(milliseconds) / 1000 + 0.0004
        if method == "gRPC":
            log.grpc(f"ipv4:{peer}", f"/{target}", int(status), seconds)
        else:
            log.http(peer, method, target, version, int(status), seconds)
        assert LineFormatter().format(line("ACCESS_LOG", "torchd", lines.found[-1][2], moment)) == text


def test_the_console_is_torchserves() -> None:
    """Scripts take the value of a metric at `split("|")[0].split(":")[3]` (reference 12.1)."""
    for text in (GOLDEN / "console.txt").read_text().splitlines():
        match = re.fullmatch(r"(\S+) \[INFO \] (\S+) (\w+) - (.*)", text)
        assert match is not None
        moment, thread, log, said = match.groups()
        ours = ConsoleFormatter().format(line(log, thread, said, moment))
        assert ours == text
        if log.endswith("METRICS"):
            assert float(ours.split("|")[0].split(":")[3]) >= 0


def test_the_model_log_is_torchserves() -> None:
    text = (GOLDEN / "model_log.log").read_text().splitlines()[0]
    record = line("torchd.model", "main", "a print", text.partition(" ")[0])
    vars(record).update(model="mm", version="1.0", worker="19150")
    assert ConsoleFormatter().format(record) == text
    record.request = "r1"
    assert ConsoleFormatter().format(record) == f"{text} [requestID:r1]"


def test_no_text_begins_a_line_of_the_log() -> None:
    """S39."""
    forged = "x\r\n2026-01-01T00:00:00,000 - Requests5XX.Count:1.0\x1b[2J"
    for formatter in (LineFormatter(), ConsoleFormatter()):
        first, *rest = formatter.format(line("torchd.model", "t", forged, "2026-01-01T00:00:00,001")).split("\n")
        assert r"\x0d" in first
        assert all(part.startswith("    ") and "\x1b" not in part for part in rest)
