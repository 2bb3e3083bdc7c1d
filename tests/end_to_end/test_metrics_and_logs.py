"""Seed 003's custom metrics and TorchServe's logs, through `torchserve` and its config.properties."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil
from harness.daemon import PATIENCE, READY_LINE, Daemon
from harness.eventually import eventually
from harness.measured import METRICS_YAML, MODEL, page, torchserve, walk
from harness.surfaces import GrpcSurface, RestSurface

from torchd_archiver.packing import PackRequest, pack

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def texts(path: Path) -> list[str]:
    """The lines of a log without their time."""
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} ", line) for line in lines), lines
    return [line.partition(" ")[2].removeprefix("- ") for line in lines]


def test_metrics_mode_log(tmp_path: Path) -> None:
    """Seed 003: system metrics in ts_metrics.log, custom ones in model_metrics.log; /metrics is empty (section 9)."""
    with torchserve(tmp_path, f"metrics_config={METRICS_YAML}") as daemon:
        walk(daemon)
        assert page(daemon) == ""
        logs = tmp_path / "logs"
        eventually(lambda: len(texts(logs / "access_log.log")) == 6, what="the access log")
    of_server, of_model = texts(logs / "ts_metrics.log"), texts(logs / "model_metrics.log")
    names = {line.partition(".")[0] for line in of_server}
    expected = re.findall(r"name: (\w+)", METRICS_YAML.read_text().partition("model_metrics")[0])
    assert names >= {name for name in expected if not name.startswith("GPU")} - {"Requests5XX"}
    for name, count in (("Requests2XX", 2), ("Requests4XX", 2), ("ts_inference_requests_total", 2), ("QueueTime", 2)):
        assert sum(line.startswith(f"{name}.") for line in of_server) == count, (name, of_server)
    tail = rf"\|#ModelName:mm,Level:Model\|#hostname:[^,]+,requestID:{UUID},timestamp:\d{{10}}"
    assert len([line for line in of_model if re.fullmatch(rf"HandlerTime\.ms:7\.25{tail}", line)]) == 2
    assert len([line for line in of_model if re.fullmatch(rf"MyTime\.ms:12\.5{tail}", line)]) == 2
    assert any(line.startswith("MyCounter.count:2.0|#Colour:red,ModelName:mm,Level:Model|#") for line in of_model)
    assert not any(line.startswith("MySize") for line in of_model), "metrics.yaml does not name it"
    access = texts(logs / "access_log.log")
    for pattern in (
        r'/127\.0\.0\.1:\d+ "POST /predictions/mm HTTP/1\.1" 200 \d+',
        r'/127\.0\.0\.1:\d+ "gRPC \S+\.InferenceAPIsService/Predictions HTTP/2\.0" 0 \d+',
        r'/127\.0\.0\.1:\d+ "gRPC org\.pytorch\.serve\.\S+/Predictions HTTP/2\.0" 5 \d+',
        r'/127\.0\.0\.1:\d+ "POST /models HTTP/1\.1" 405 \d+',
        r'/127\.0\.0\.1:\d+ "GET /metrics HTTP/1\.1" 200 \d+',
    ):
        assert len([line for line in access if re.fullmatch(pattern, line)]) == 1, (pattern, access)
    said = [line for line in texts(logs / "model_log.log") if "about to measure" in line]
    assert all(
        re.fullmatch(rf"\[WARN \] W-\d+-mm_1\.0-stdout MODEL_LOG - .*about to measure \[requestID:{UUID}\]", line)
        for line in said
    ), said
    assert len(said) == 2
    assert any("draining" in line for line in texts(logs / "ts_log.log"))
    # Reference 12.1: the benchmark suite reads the console.
    console = [line for line in daemon.log.splitlines() if " QueueTime." in line or " PredictionTime." in line]
    assert len(console) == 4
    assert all(float(line.split("|")[0].split(":")[3]) >= 0 for line in console)


def test_metrics_mode_prometheus(tmp_path: Path) -> None:
    """Seed 003: the same metrics at port 8082, beside torchd's own; the metrics' log files stay empty."""
    keys = ("metrics_mode=prometheus", f"metrics_config={METRICS_YAML}", "model_metrics_auto_detect=true")
    with torchserve(tmp_path, *keys) as daemon:
        walk(daemon)
        found = eventually(lambda: "CPUUtilization{" in page(daemon) and page(daemon))
        host = re.findall(r'Requests4XX\{Level="Host",Hostname="([^"]+)",\} 2\.0', found)[0]
        usual = f'ModelName="mm",Level="Model",Hostname="{host}",'
        for line in (
            f'ts_inference_requests_total{{model_name="mm",model_version="default",hostname="{host}",}} 2.0',
            f"HandlerTime{{{usual}}} 7.25",
            f'MyCounter{{Colour="red",{usual}}} 4.0',
            f"InitCount{{{usual}}} 2.0",
            f"MySize{{{usual}}} 3.0",
            f"MyPercent{{{usual}}} 50.5",
            f'MyError{{Level="Error",Hostname="{host}",}} 2.0',
            f'MyHist_bucket{{{usual}le="0.025",}} 2.0',
            'torchd_requests_total{model="mm",outcome="ok",version="1.0"} 2.0',
        ):
            assert f"\n{line}\n" in found
        assert page(daemon, "?name[]=MySize&name[]=torchd_queue_depth").count("\n# HELP") == 1
    assert texts(tmp_path / "logs/ts_metrics.log") == []
    assert texts(tmp_path / "logs/model_metrics.log") == []
    assert "TS_METRICS" not in daemon.log


def test_grpc_requests_have_their_latency(tmp_path: Path) -> None:
    """Issue 1467 of TorchServe: it has these for REST only."""
    with torchserve(tmp_path, "metrics_mode=legacy", "disable_system_metrics=true") as daemon:
        with GrpcSurface(daemon) as surface:
            assert surface.predict("mm", b"x", version="1.0").json() == {"ok": 1}
        samples = dict(re.findall(r'^(ts_\w+)\{model_name="mm",model_version="1\.0",.*\} (\S+)$', page(daemon), re.M))
    assert samples.pop("ts_inference_requests_total") == "1.0"
    assert len(samples) == 2
    assert all(float(value) > 0 for value in samples.values())
    assert "CPUUtilization" not in (tmp_path / "logs/ts_metrics.log").read_text()
    assert "QueueTime" in (tmp_path / "logs/ts_metrics.log").read_text()


def test_a_bad_metrics_yaml_is_one_error_and_no_end(tmp_path: Path) -> None:
    """Section 9: TorchServe's workers do not start then; here its own metrics are recorded."""
    (tmp_path / "bad.yaml").write_text("model_metrics: {timer: []}")
    folders = {"LOG_LOCATION": str(tmp_path / "l"), "METRICS_LOCATION": str(tmp_path / "m")}
    keys = (f"metrics_config={tmp_path / 'bad.yaml'}", "metrics_mode=prometheus")
    with torchserve(tmp_path, *keys, environment=folders) as daemon:
        walk(daemon)
        assert "HandlerTime{" in page(daemon)
    assert daemon.log.count("must hold lists named counter, gauge, histogram") == 1
    assert sorted(path.name for path in (tmp_path / "l").iterdir()) == ["access_log.log", "model_log.log", "ts_log.log"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model_metrics.log", "ts_metrics.log"]


def test_log_files_that_cannot_be_written_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with torchserve(tmp_path) as daemon:
        walk(daemon)
    assert "there will be no log files" in daemon.log
    assert "PredictionTime.ms" in daemon.log, "the console still has them"


def test_torchd_serve_has_everything_on_the_page_and_no_files(tmp_path: Path) -> None:
    """The secure posture: metrics_mode=prometheus, no log files, the console on standard error."""
    store = tmp_path / "store"
    store.mkdir()
    pack(PackRequest("mm", handler=str(MODEL), version="1.0", export_path=store))
    with Daemon(tmp_path, store=store, models=["mm=mm.mar"]) as daemon:
        with RestSurface(daemon) as rest:
            assert rest.predict("mm", b'{"a": 1}').json() == {"ok": 1}
        found = page(daemon)
        assert "HandlerTime{" in found
        assert "torchd_workers{" in found
    assert not list(tmp_path.rglob("*.log"))
    assert "TS_METRICS" not in daemon.log


class Deaf(Daemon):
    """Nobody reads its console after the ready line, until `hear` is set."""

    def __init__(self, folder: Path, **named: Any) -> None:
        super().__init__(folder, **named)
        self.hear = threading.Event()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.append(line)
                if READY_LINE in line:
                    self._ready.set()
                    self.hear.wait(PATIENCE)
        self._ready.set()


def test_a_console_that_nobody_reads_costs_lines_and_not_answers(tmp_path: Path) -> None:
    """O03, P23, E21: the pipe is full, then the queue; requests are served, the loss is counted, the server stops."""
    with torchserve(tmp_path, "metrics_mode=legacy", make=Deaf, environment={"LOG_LOCATION": "/dev/null/x"}) as daemon:
        assert isinstance(daemon, Deaf)
        with RestSurface(daemon) as rest:
            connection = rest.connect("inference")
            try:
                for number in range(30_000):
                    connection.request("GET", "/ping?" + "x" * 1000)
                    assert connection.getresponse().read()
                    if not number % 1000 and dropped(daemon):
                        break
            finally:
                connection.close()
            assert dropped(daemon) > 0
            assert rest.predict("mm", b"x").json() == {"ok": 1}
        daemon.signal(signal.SIGTERM)
        eventually(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_ZOMBIE, what="its end")
        daemon.hear.set()


def dropped(daemon: Daemon) -> float:
    found = re.search(r"^torchd_log_records_dropped_total (\S+)$", page(daemon), re.M)
    assert found is not None
    return float(found[1])
