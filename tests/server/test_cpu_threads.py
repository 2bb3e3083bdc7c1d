"""How many cores there are, and who gets how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server.accelerators.cpu import ThreadBudget, usable_cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, HERE),
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "110000 100000\n"}, min(HERE, 2)),
        ({"cpu.max": "9900000 100000\n"}, HERE),
        ({"cpu.max": "garbage"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_the_quota_of_the_control_group_counts(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_the_affinity_of_this_process_counts(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@given(st.integers(1, 16), st.lists(st.booleans(), max_size=30))
def test_every_member_knows_the_share_at_all_times(cores: int, joins: list[bool]) -> None:
    """And together they never take more than there is, but one each."""
    budget = ThreadBudget(cores)
    told: dict[object, int] = {}
    for is_join in joins:
        if is_join or not told:
            member = object()
            told[member] = 0
            told[member] = budget.join(member, lambda share, member=member: told.__setitem__(member, share))  # type: ignore[misc]
        else:
            member = next(iter(told))
            del told[member]
            budget.leave(member)
            budget.leave(member)
        assert set(told.values()) <= {max(1, cores // max(1, len(told)))}
        assert sum(told.values()) <= max(cores, len(told))


def test_a_fixed_number_is_everybodys_share() -> None:
    budget = ThreadBudget(8, fixed=3)
    assert [budget.join(number, lambda share: None) for number in range(5)] == [3] * 5


def test_only_a_changed_share_is_told() -> None:
    told: list[int] = []
    budget = ThreadBudget(2)
    for number in range(4):
        budget.join(number, told.append)
    assert told == [1, 1]  # both, when the second came
