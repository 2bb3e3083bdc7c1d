"""What a search keeps, and what it says of its trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import ManualClock

from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.outcome import Fate, Run, Trial, as_json, from_json, longest, why_lost
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Setting
from torchd_clients.tune.state import digest, open_state

SLO = Slo(99, 100)


def run(throughput: float, p99: float, clients: int = 2) -> Run:
    return Run(clients, 100, 2.0, throughput, p99 / 2, p99, p99)


def trial(throughput: float = 10.0, p99: float = 50.0, rung: int = 0, batch_size: int = 1) -> Trial:
    return Trial(Setting(batch_size=batch_size), rung, Fate.MEASURED, runs=(run(throughput, p99),), took_seconds=2.5)


def test_a_search_goes_on_with_what_it_kept(tmp_path: Path) -> None:
    state = open_state(tmp_path, {"slo": "p99 <= 100 ms"})
    state.answers = [b"\x00\xff"]
    state.add(trial())
    state.add(Trial(Setting(dtype="bfloat16"), 0, Fate.DIFFERS, "answer 1 ..."))
    again = open_state(tmp_path, {"slo": "p99 <= 100 ms"})
    assert (again.trials, again.answers) == (state.trials, state.answers)
    assert again.find(Setting(), 0) == trial()
    assert again.find(Setting(), 1) is None
    refused = again.find(Setting(dtype="bfloat16"), 2)
    assert refused is not None
    assert refused.fate is Fate.DIFFERS


def test_another_searchs_folder_is_not_used(tmp_path: Path) -> None:
    open_state(tmp_path, {"slo": "p99 <= 100 ms"}).add(trial())
    with pytest.raises(TuneFailed, match=r"slo differ\); --fresh begins anew"):
        open_state(tmp_path, {"slo": "p99 <= 50 ms"})
    assert open_state(tmp_path, {"slo": "p99 <= 50 ms"}, fresh=True).trials == []


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    state = open_state(tmp_path, {})
    state.add(trial())
    state.path.write_text(state.path.read_text()[:50])
    with pytest.raises(TuneFailed, match="--fresh"):
        open_state(tmp_path, {})


def test_a_changed_archive_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(b"1")
    before = digest(tmp_path / "a.mar"), digest(tmp_path)
    (tmp_path / "a.mar").write_bytes(b"22")
    assert before[0] != digest(tmp_path / "a.mar")
    assert before[1] != digest(tmp_path)


def test_a_trial_counts_by_its_best_run_under_the_bound() -> None:
    both = Trial(Setting(), 0, Fate.MEASURED, runs=(run(20, 150, 8), run(15, 90, 4), run(12, 60, 2)))
    assert both.score(SLO) == 15
    assert both.is_within(SLO)
    over = Trial(Setting(), 0, Fate.MEASURED, runs=(run(20, 300), run(15, 150)))
    assert over.score(SLO) == -1.5
    assert not over.is_within(SLO)
    assert Trial(Setting(), 0, Fate.NOT_LOADED, "x").score(SLO) is None


def test_why_a_setting_lost() -> None:
    best = [trial(20, 50, 0, 8), trial(22, 50, 1, 8)]
    assert why_lost(trial(15, 50, 0), best, SLO) == "slower by 25 %"
    assert why_lost(trial(11, 50, 1), best, SLO) == "slower by 50 %"
    assert why_lost(trial(20, 50, 0), best, SLO) == "no faster by more than the noise"
    assert why_lost(trial(99, 130), best, SLO) == "over the bound: p99 130 ms with 2 clients"
    refused = Trial(Setting(), 0, Fate.NOT_LOADED, "no such type")
    assert why_lost(refused, best, SLO) == "did not load: no such type"


def test_each_setting_is_shown_by_its_longest_trial() -> None:
    shown = longest([trial(10), trial(20, batch_size=8), trial(12, rung=1)])
    assert [(one.setting.batch_size, one.rung) for one in shown] == [(1, 1), (8, 0)]


def test_trials_come_back_from_json_as_they_were() -> None:
    assert from_json(as_json(trial())) == trial()


def test_the_time_of_interrupted_runs_counts(tmp_path: Path) -> None:
    clock = ManualClock()
    state = open_state(tmp_path, {}, clock=clock.time)
    clock.advance(40)
    state.save()
    clock.advance(1000)
    again = open_state(tmp_path, {}, clock=clock.time)
    clock.advance(2)
    assert again.spent_seconds == 42
