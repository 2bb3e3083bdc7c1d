"""A whole search against a modelled server: what it finds, what it refuses, when it ends, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import ManualClock
from harness.modelled_server import ModelledServer

from torchd_clients.tune.baseline import learn_default
from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.outcome import Fate, Trial
from torchd_clients.tune.plan import Plan
from torchd_clients.tune.plot import draw
from torchd_clients.tune.search import CONFIRMING, Result, Search
from torchd_clients.tune.slo import Slo
from torchd_clients.tune.space import Machine, Setting, Space, space_of
from torchd_clients.tune.state import State, open_state
from torchd_clients.tune.table import headline, trials_table
from torchd_clients.tune.trial import Examiner
from torchd_protos.management_pb2 import OptimizationDescription, OptimizationOption

SLO = Slo(99, 200)
MACHINE = Machine(2, has_bfloat16=True)


def searched(
    tmp_path: Path, server: ModelledServer, slo: Slo = SLO, budget: float = 1000.0, fresh: bool = False
) -> tuple[Result, State, Space, Search]:
    state = open_state(tmp_path, {"slo": str(slo)}, fresh=fresh, clock=server.clock.time)
    plan = Plan(budget)
    space = learn_default(space_of(Setting(), MACHINE), state, server, plan, server.clock.time)
    search = Search(space, slo, state, plan)
    examiner = Examiner(server, slo, state.answers if state.is_comparable else (), server.clock.time)
    return search.run(examiner, lambda what, trial: None), state, space, search


def test_it_finds_the_setting_that_the_formula_says_is_best(tmp_path: Path) -> None:
    result, _, _, search = searched(tmp_path, ModelledServer(ManualClock()))
    best = result.best.setting
    assert (best.workers, best.dtype) == (2, "bfloat16")
    assert best.batch_size >= 16
    assert result.best.is_within(SLO)
    assert result.is_better
    assert search.ended_by == "nothing near the best is better"


def test_no_other_setting_of_the_space_is_much_better(tmp_path: Path) -> None:
    """Every setting of the space measured: the search found one within 3 % a step of the top."""
    server = ModelledServer(ManualClock())
    result, _, space, _ = searched(tmp_path, server)
    examiner = Examiner(server, SLO, ())
    scores = [
        examiner.examine(setting, 0, 1.0).score(SLO) or 0.0
        for workers in (1, 2)
        for size in (1, 2, 4, 8, 16, 32)
        for dtype in ("", "bfloat16")
        if space.is_sensible(setting := Setting(workers=workers, batch_size=size, dtype=dtype))
    ]
    assert (result.best.score(SLO) or 0.0) >= 0.95 * max(scores)


def test_what_answers_otherwise_is_never_recommended_and_tried_but_once(tmp_path: Path) -> None:
    server = ModelledServer(ManualClock(), answers={"bfloat16": [b"[0.20, 0.80]", b'["no"]']})
    result, state, _, _ = searched(tmp_path, server)
    narrow = [trial for trial in state.trials if trial.setting.dtype == "bfloat16"]
    assert [trial.fate for trial in narrow] == [Fate.DIFFERS]
    assert "answer 2 at 0 is 'no' in place of 'yes'" in narrow[0].reason
    assert not narrow[0].runs
    assert result.best.setting.dtype == ""
    assert result.best.setting.workers == 2


def test_what_the_workers_own_check_refuses_is_told_as_a_difference(tmp_path: Path) -> None:
    server = ModelledServer(ManualClock(), broken={"bfloat16": "AnswersChange: optimize.dtype bfloat16 changes ..."})
    _, state, _, _ = searched(tmp_path, server)
    assert {trial.fate for trial in state.trials if trial.setting.dtype} == {Fate.DIFFERS}


def test_what_does_not_load_is_told_and_not_tried_with_other_workers(tmp_path: Path) -> None:
    server = ModelledServer(ManualClock(), broken={"compile default": "no compiler", "bfloat16": "no such type"})
    result, state, space, _ = searched(tmp_path, server)
    failed = [trial for trial in state.trials if trial.fate is Fate.NOT_LOADED]
    assert sorted(trial.setting.optimization for trial in failed) == ["bfloat16", "compile default"]
    table = printed(state.trials, result, space)
    assert "did not load: no such type" in table


def test_a_model_that_draws_lots_is_tuned_without_touching_its_numbers(tmp_path: Path) -> None:
    clock = ManualClock()

    class Dice(ModelledServer):
        def ask(self, at_once: int, count: int = 0) -> list[bytes]:
            return [json.dumps(len(self.measured) + self.clock.time() + (self.turn())).encode()]

        turns = 0

        def turn(self) -> float:
            self.turns += 1
            return self.turns * 100 + 0.5

    result, state, _, _ = searched(tmp_path, Dice(clock))
    assert not state.is_comparable
    assert {trial.setting.optimization for trial in state.trials} == {"N/A"}
    assert result.best.setting.workers == 2


def test_the_time_it_may_take_is_kept(tmp_path: Path) -> None:
    server = ModelledServer(ManualClock())
    began = server.clock.time()
    result, _, _, search = searched(tmp_path, server, budget=120.0)
    assert server.clock.time() - began <= 120.0
    assert search.ended_by == "its 120 s were over"
    assert result.best.rung == CONFIRMING


def test_the_default_and_the_best_are_measured_from_their_files_alike(tmp_path: Path) -> None:
    server = ModelledServer(ManualClock())
    result, state, _, _ = searched(tmp_path, server)
    assert [trial.setting for trial in state.confirmed] == [Setting(), result.best.setting]
    *_, (_, _, first), (_, _, second) = server.measured
    assert first == second


def test_a_winner_that_does_not_win_again_is_passed_over(tmp_path: Path) -> None:
    """Measured shortly it was lucky: measured longer it is not."""
    clock = ManualClock()
    first, _, _, _ = searched(tmp_path / "a", ModelledServer(clock)) if (tmp_path / "a").mkdir() is None else (0,) * 4

    class Lucky(ModelledServer):
        def measure(self, clients: int, seconds: float, slo: Slo) -> object:  # type: ignore[override]
            run = super().measure(clients, seconds, slo)
            if self.loaded[-1] == first.best.setting and seconds > 9:
                return type(run)(clients, 1, seconds, 0.1, 9000, 9000, 9000)
            return run

    (tmp_path / "b").mkdir()
    second, state, _, _ = searched(tmp_path / "b", Lucky(clock))
    assert second.best.setting != first.best.setting
    assert second.is_better
    assert len(state.confirmed) == 3


def test_fewer_clients_are_tried_where_the_bound_is_broken(tmp_path: Path) -> None:
    trial = Examiner(server := ModelledServer(ManualClock()), Slo(99, 100), ()).examine(
        Setting(workers=2, batch_size=16), 0, 1.0
    )
    assert 1 < len(trial.runs) <= 4
    assert [clients for _, clients, _ in server.measured] == sorted((run.clients for run in trial.runs), reverse=True)
    assert trial.is_within(Slo(99, 100))


def test_nothing_holds_the_bound(tmp_path: Path) -> None:
    result, state, space, _ = searched(tmp_path, ModelledServer(ManualClock()), Slo(99, 1))
    assert not result.is_better
    assert "does not hold the bound" in headline(result, Slo(99, 1))
    assert "over the bound: p99" in printed(state.trials, result, space, Slo(99, 1))


@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, all_of_it, _, _ = searched(tmp_path / "whole", ModelledServer(ManualClock()))
    measured = 0

    def interrupt(setting: Setting) -> None:
        nonlocal measured
        measured += 1
        if measured > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "cut", ModelledServer(ManualClock(), before_measuring=interrupt))
    server = ModelledServer(ManualClock())
    again, state, _, _ = searched(tmp_path / "cut", server)
    assert again.best.setting == whole.best.setting
    assert [trial.setting for trial in state.trials] == [trial.setting for trial in all_of_it.trials]
    assert len({setting for setting, _, _ in server.measured}) <= len({one.setting for one in state.trials})
    once_more = ModelledServer(ManualClock())
    searched(tmp_path / "cut", once_more)
    assert once_more.measured == []


def test_a_default_that_cannot_be_served_ends_the_search_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(TuneFailed, match="cannot be served as it is: no weights"):
        searched(tmp_path, ModelledServer(ManualClock(), broken={"N/A": "no weights"}))


def test_the_table_has_the_columns_people_write_down_and_why_each_lost(tmp_path: Path) -> None:
    result, state, space, _ = searched(tmp_path, ModelledServer(ManualClock()))
    table = printed([*state.trials, *state.confirmed], result, space)
    for column in ("Device", "Concurrency", "# Requests", "# Workers", "Batch size", "Payload", "Optimization"):
        assert column in table
    rows = [line for line in table.splitlines() if line.startswith("| CPU")]
    assert rows[0].rstrip(" |").endswith("best")
    assert "default, slower by" in rows[1]
    assert all("slower by" in row or "no faster" in row or "over the bound" in row for row in rows[2:])
    assert "times the default's" in headline(result, SLO)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    result, state, _, _ = searched(tmp_path, ModelledServer(ManualClock()))
    draw([*state.trials, *state.confirmed], result, SLO, "a model", tmp_path / "tune.png")
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def printed(trials: list[Trial], result: Result, space: Space, slo: Slo = SLO) -> str:
    from rich.console import Console

    out = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    out.print(trials_table(trials, result, space, slo, "100 B"))
    return out.export_text()


def test_what_a_worker_did_not_apply_is_not_taken_for_faster(tmp_path: Path) -> None:
    option = OptimizationOption(name="dtype", asked="bfloat16", applied=False, detail="this model has no weights")
    server = ModelledServer(ManualClock(), report={"bfloat16": OptimizationDescription(options=[option])})
    result, state, _, _ = searched(tmp_path, server)
    [tried] = [trial for trial in state.trials if trial.setting.dtype]
    assert (tried.fate, tried.reason) == (Fate.NOT_LOADED, "dtype is not applied: this model has no weights")
    assert result.best.setting.dtype == ""
