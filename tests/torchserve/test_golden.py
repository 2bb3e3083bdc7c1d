"""The daemon answers as TorchServe 0.12 did (golden/), but for what torchserve_0.12.toml says."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness.commands import ROOT
from torchserve import compare, scenarios
from torchserve.playing import play

MIGRATING = ROOT / "docs" / "migrating.md"
STEPS = [(name, step.id) for name in scenarios.names() for step in scenarios.read(name).steps]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where archives are packed once for all scenarios."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def answers(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The daemon's normalised answers to a scenario's steps, by step id; each scenario is played once."""

    @cache
    def played(name: str) -> dict[str, Any]:
        return play(scenarios.read(name), tmp_path_factory.mktemp(name), shelf)

    return played


@pytest.mark.parametrize(("scenario", "step"), STEPS, ids=[f"{name}/{step}" for name, step in STEPS])
@pytest.mark.timeout(180)
def test_the_answer_is_torchserves(answers: Callable[[str], dict[str, Any]], scenario: str, step: str) -> None:
    """One step of one scenario."""
    name = f"{scenario}/{step}"
    recorded = scenarios.read_golden(scenario)[step]
    left = compare.unexplained(name, recorded, answers(scenario)[step])
    told = "\n".join(map(str, left))
    assert not left, f"{name} (row {recorded['row']}) differs from TorchServe 0.12:\n{told}"


def test_every_step_has_a_recorded_answer_and_every_answer_a_step() -> None:
    """A scenario that was changed must be recorded again."""
    for name in scenarios.names():
        steps = {step.id: step.row for step in scenarios.read(name).steps}
        recorded = {step: answer["row"] for step, answer in scenarios.read_golden(name).items()}
        assert steps == recorded, name


def test_every_intended_difference_is_in_the_migration_guide() -> None:
    """docs/migrating.md has a section with the id of each difference."""
    section = MIGRATING.read_text().partition("## What is different, and why")[2]
    missing = [one.id for one in compare.intended() if not re.search(rf"\b{one.id}\b", section)]
    assert not missing
