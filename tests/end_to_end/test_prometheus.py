"""The real Prometheus (Debian's package) reads the daemon, and knows everything that the dashboard draws."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from harness.commands import ROOT, find_tool
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.measured import page, torchserve, walk
from harness.surfaces import RestSurface

DASHBOARD = ROOT / "scripts/monitoring/grafana_dashboard.json"
CONFIGURATION = ROOT / "scripts/monitoring/prometheus.yml"
# A word of a query that is neither a function, a label, a duration nor a string.
METRIC = re.compile(r"\b(?:torchd_|ts_|[A-Z])\w+")
FAKE_GPU = "#!/bin/sh\necho '0, 17, 1024, 4096'\n"


def queries() -> list[str]:
    """Every query of the dashboard as Grafana would send it."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(found) > 20
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in found]


def metrics_in(query: str) -> set[str]:
    return set(METRIC.findall(re.sub(r'"[^"]*"|by \([^)]*\)|\{[^}]*\}', "", query)))


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Prometheus on a free port with the configuration of this project, reading `target` twice a second."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"]["scrape_interval"] = "500ms"
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "prometheus.txt").open("w") as said:
        process = subprocess.Popen(
            [
                str(find_tool("prometheus")),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={address}",
            ],
            stdout=said,
            stderr=said,
        )
        try:
            yield f"http://{address}/api/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def ask(api: str, path: str, **parameters: str) -> Any:
    """What Prometheus answers."""
    try:
        with urlopen(f"{api}/{path}?{urlencode(parameters)}", timeout=10) as response:
            answer = json.load(response)
    except OSError:  # it is not there yet
        return []
    assert answer["status"] == "success", answer
    return answer["data"]


def is_read(api: str) -> bool:
    """Whether the daemon was scraped; fails where Prometheus could not make sense of the page."""
    targets = ask(api, "targets")
    errors = [target["lastError"] for target in targets["activeTargets"]] if targets else []
    assert not any("parse" in error or "expected" in error for error in errors), errors
    return bool(ask(api, "query", query='up{job="torchd"} == 1')["result"]) if targets else False


def fake_gpu(folder: Path) -> dict[str, str]:
    """A PATH on which nvidia-smi tells of one device."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(FAKE_GPU)
    (tools / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{tools}:/usr/bin:/bin"}


@pytest.mark.needs("prometheus")
def test_prometheus_knows_every_metric_of_the_dashboard(tmp_path: Path) -> None:
    """Done 5 of issue 3. TorchServe's comma at the end of the labels is read as well."""
    keys = ("metrics_mode=prometheus", "metric_time_interval=1")
    with torchserve(tmp_path, *keys, environment=fake_gpu(tmp_path)) as daemon:
        target = "{}:{}".format(*daemon.host_and_port("metrics"))
        with prometheus(tmp_path, target) as api:
            walk(daemon)
            eventually(lambda: is_read(api), what="a scrape")
            fail_once(daemon)
            wanted = set().union(*(metrics_in(query) for query in queries()))
            assert len(wanted) > 30, wanted
            assert wanted >= {"Requests5XX", "HandlerTime", "torchd_workers", "GPUMemoryUsed", "CPUUtilization"}

            def missing() -> set[str]:
                return wanted - set(ask(api, "label/__name__/values"))

            eventually(lambda: not missing(), what=f"all of the dashboard; missing {missing()}")

            def empty() -> list[str]:
                return [query for query in queries() if not ask(api, "query", query=query)["result"]]

            # rate() wants two scrapes of a series: more traffic until each query has something to draw.
            eventually(lambda: walk(daemon) or not empty(), what=f"each query; without a result {empty()}")


def fail_once(daemon: Daemon) -> None:
    """An answer that counts as 5XX: its worker is away, and nobody waits for a new one."""
    with RestSurface(daemon) as rest:
        assert rest.scale("mm", 0).status == 200
        assert rest.predict("mm", b"x").status == 503
        assert rest.scale("mm", 1).status == 200


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_wrong_with_our_families(tmp_path: Path) -> None:
    """`promtool check metrics` reads what TorchServe never wrote: names, units, help."""
    with torchserve(tmp_path, "metrics_mode=prometheus") as daemon:
        walk(daemon)
        text = page(daemon)
    ours = text[text.index("# HELP torchd_") :]
    command = [str(find_tool("promtool")), "check", "metrics"]
    checked = subprocess.run(command, input=ours, capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    # TorchServe's part reads, though its names are not as Prometheus advises.
    read = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert "error while linting" not in read.stderr
    assert "parsing" not in read.stderr


@pytest.mark.needs("promtool")
def test_the_scrape_configuration_is_valid() -> None:
    command = [str(find_tool("promtool")), "check", "config", str(CONFIGURATION)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
