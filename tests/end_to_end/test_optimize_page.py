"""docs/optimize.md as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.commands import ROOT
from harness.typed_page import typed

pytest.importorskip("torch")

PAGE = ROOT / "docs" / "optimize.md"


@pytest.mark.timeout(200)
@pytest.mark.needs("curl")
def test_the_page_as_typed_serves_an_optimized_model_and_tells_of_it(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    _, served, told, _, _ = typed(PAGE, tmp_path, timeout=180, setup="set -m\n")
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
