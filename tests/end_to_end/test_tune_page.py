"""docs/tune.md as it is typed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from harness.commands import ROOT, environment, install_commands
from harness.daemon import free_ports

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

PAGE = ROOT / "docs" / "tune.md"
PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")


@pytest.mark.timeout(300)
def test_the_page_as_typed_tunes_a_model_and_serves_it(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    flags = " ".join(f"--{name}-port {port}" for name, port in zip(PORTS, free_ports(5), strict=True))
    program = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    program += "".join(f"{block}\necho; echo '== end of a block'\n" for block in blocks)
    assert program.count("torchd serve ") == 1
    program = program.replace("torchd serve ", f"torchd serve {flags} ")
    (tmp_path / "scratch").mkdir()
    variables = environment(install_commands(tmp_path / "bin"), tmp_path / "scratch")
    del variables["OMP_NUM_THREADS"]
    log = tmp_path / "terminal.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", "-c", program],
            cwd=tmp_path,
            env=variables | {"XDG_RUNTIME_DIR": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=280,
        )
    assert ended.returncode == 0, log.read_text()
    tuned, served, _ = log.read_text().split("== end of a block\n")
    assert "bound: p99 <= 200 ms" in tuned
    assert re.search(r"^Best: |^Nothing is better", tuned, re.MULTILINE)
    written = (tmp_path / "tune-scores" / "model-config.yaml").read_text()
    assert written in tuned
    assert re.search(r"\[\s*0\.\d+,\s*0\.\d+,\s*0\.\d+\s*\]", served)
    if "batchSize: 8" in written:
        assert re.search(r"batch +8,", served)
