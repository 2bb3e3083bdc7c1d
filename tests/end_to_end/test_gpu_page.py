"""docs/gpu.md as it is typed, on whatever this machine has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness.commands import ROOT
from harness.typed_page import typed

pytest.importorskip("torch")

PAGE = ROOT / "docs" / "gpu.md"


@pytest.mark.timeout(200)
@pytest.mark.needs("curl")
def test_the_page_as_typed_serves_a_model_in_both_types(tmp_path: Path) -> None:
    """Every `bash` block in one shell; only the ports are this test's."""
    served, narrow, changed, _, _ = typed(PAGE, tmp_path, timeout=180)
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
