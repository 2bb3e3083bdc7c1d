"""docs/gpu.md as it is typed, on whatever this machine has."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness.commands import ROOT, environment, install_commands
from harness.daemon import free_ports

pytest.importorskip("torch")

PAGE = ROOT / "docs" / "gpu.md"
PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")


@pytest.mark.timeout(200)
@pytest.mark.needs("curl")
def test_the_page_as_typed_serves_a_model_in_both_types(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    ports = dict(zip(PORTS, free_ports(5), strict=True))
    flags = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    program = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    program += "".join(f"{block}\necho; echo '== end of a block'\n" for block in blocks)
    assert program.count("torchd serve ") == 1
    program = program.replace("torchd serve ", f"torchd serve {flags} ").replace(":8081/", f":{ports['management']}/")
    (tmp_path / "scratch").mkdir()
    variables = environment(install_commands(tmp_path / "bin"), tmp_path / "scratch") | {
        "XDG_RUNTIME_DIR": str(tmp_path)
    }
    log = tmp_path / "terminal.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", "-c", program], cwd=tmp_path, env=variables, stdout=output, stderr=subprocess.STDOUT, timeout=180
        )
    daemon_log = tmp_path / "torchd.log"
    assert ended.returncode == 0, log.read_text() + (daemon_log.read_text() if daemon_log.is_file() else "")
    served, narrow, changed, _, _ = log.read_text().split("== end of a block\n")
    wide, half = (probabilities(text) for text in (served, narrow))
    assert len(wide) == len(half) == 3
    assert sum(wide) == pytest.approx(1)
    assert half == pytest.approx(wide, abs=0.02)
    assert half != wide
    assert "no neuron: " in served or "neuron 0" in served
    assert "Settings changed for model: flowers: batch_size=4" in changed
    assert re.search(r"batch +4,", changed)


def probabilities(text: str) -> list[float]:
    """The answer among what the commands print."""
    [answer] = re.findall(r"^\[[^\]]*\]", text, re.MULTILINE)
    found: list[float] = json.loads(answer)
    return found
