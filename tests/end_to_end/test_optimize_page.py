"""docs/optimize.md as it is typed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness.commands import ROOT, environment, install_commands
from harness.daemon import free_ports

pytest.importorskip("torch")

PAGE = ROOT / "docs" / "optimize.md"
PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")


@pytest.mark.timeout(200)
@pytest.mark.needs("curl")
def test_the_page_as_typed_serves_an_optimized_model_and_tells_of_it(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    ports = dict(zip(PORTS, free_ports(5), strict=True))
    flags = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    program = "set -eo pipefail\nset -m\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
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
    _, served, told, _, _ = log.read_text().split("== end of a block\n")
    row = next(line for line in served.splitlines() if "│ dtype " in line)
    assert "│ bfloat16 " in row
    assert "│ yes " in row
    assert "layers: " in row
    assert "│ 100.0% " in row
    assert "│ 16 requests in batches of up to 8 " in served
    report = json.loads(told)
    assert [option["name"] for option in report["options"]] == ["dtype", "warmup"]
    difference = report["options"][0]["difference"]
    assert difference["inputs"] == 100
    assert 0 < difference["ratio"] <= 0.05
    assert difference["top1Judged"] is True
