"""docs/tune.md as it is typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.commands import ROOT
from harness.typed_page import typed

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

PAGE = ROOT / "docs" / "tune.md"


@pytest.mark.timeout(300)
def test_the_page_as_typed_tunes_a_model_and_serves_it(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    tuned, served, _ = typed(PAGE, tmp_path, timeout=280, without=["OMP_NUM_THREADS"])
    assert "bound: p99 <= 200 ms" in tuned
    assert re.search(r"^Best: |^Nothing is better", tuned, re.MULTILINE)
    written = (tmp_path / "tune-scores" / "model-config.yaml").read_text()
    assert written in tuned
    assert re.search(r"\[\s*0\.\d+,\s*0\.\d+,\s*0\.\d+\s*\]", served)
    if "batchSize: 8" in written:
        assert re.search(r"batch +8,", served)
