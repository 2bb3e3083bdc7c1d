"""Two runs compared, of points whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from clients.bench.made_up import point, run
from typer.testing import CliRunner

from torchd_clients.bench.changes import Change, Comparison, compare, measured, read_run
from torchd_clients.bench.command import add_commands
from torchd_clients.bench.measurement import Point
from torchd_clients.bench.points import PointsInvalid, write_points
from torchd_clients.bench.report.ab_report import write_ab_report
from torchd_clients.bench.report.rows import row_of

APP = typer.Typer()
add_commands(APP)


def compared(old: Sequence[Point], new: Sequence[Point], at_least: float = 5.0) -> Comparison:
    return compare([measured(one) for one in old], [measured(one) for one in new], at_least)


def throughput(old: Sequence[float], new: Sequence[float]) -> Change:
    comparison = compared([point(*map(run, old))], [point(*map(run, new))])
    return comparison.matched[0].changes[0]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        # Ranges of 4 and 6: together 10.
        ((100, 98, 102), (90, 88, 94), 0),
        ((100, 98, 102), (89, 87, 93), -1),
        ((100, 98, 102), (110, 108, 114), 0),
        ((100, 98, 102), (111, 109, 115), 1),
        # Beyond noise, but of no matter.
        ((100, 100, 100), (96, 96, 96), 0),
        ((100, 100, 100), (94, 94, 94), -1),
        # The one that ran once is as noisy as the other.
        ((100,), (91, 89, 94), 0),
        ((100,), (89, 87, 92), -1),
        # Nobody knows: 15 %.
        ((100,), (86,), 0),
        ((100,), (84,), -1),
    ],
)
def test_a_change_is_what_the_repeats_do_not_explain(old: list[float], new: list[float], verdict: int) -> None:
    assert throughput(old, new).verdict == verdict


def test_longer_latencies_are_worse_and_shorter_ones_better() -> None:
    slow, fast = ([run(50.0, [latency] * 100)] * 3 for latency in (20.0, 10.0))
    verdicts = {
        name: [change.verdict for change in compared([point(*one)], [point(*other)]).matched[0].changes]
        for name, one, other in (("worse", fast, slow), ("better", slow, fast))
    }
    assert verdicts == {"worse": [0, -1, -1, 0], "better": [0, 1, 1, 0]}


def test_more_errors_are_worse_however_fast_it_is() -> None:
    (one,) = compared([point(run(50.0))], [point(run(90.0, errors={"HTTP 503": 1}))]).matched
    assert [change.verdict for change in one.changes] == [1, 0, 0, -1]


def test_points_are_matched_by_their_setting_and_what_is_alone_is_told() -> None:
    old = [point(run(50.0)), point(run(60.0), clients=32), point(run(5.0), workers=1)]
    new = [point(run(61.0), clients=32), point(run(51.0)), point(run(9.0), batch_size=1)]
    comparison = compared(old, new)
    assert [(one.changes[0].old, one.changes[0].new) for one in comparison.matched] == [(50.0, 51.0), (60.0, 61.0)]
    assert [one.setting["workers"] for one in comparison.only_old] == [1]
    assert [one.setting["batch_size"] for one in comparison.only_new] == [1]


def test_a_line_of_torchserves_suite_is_matched_with_the_rest_point_of_that_setting(tmp_path: Path) -> None:
    write_ab_report(tmp_path / "ab_report.csv", [row_of(point(run(20.0)), "/models/m.mar")])
    text = (tmp_path / "ab_report.csv").read_text().replace('"torchd bench, rest, cpu"', "AB")
    (tmp_path / "ab_report.csv").write_text(text.replace("(kitten.jpg)", "(../examples/kitten.jpg)"))
    new = [measured(point(run(50.0), protocol=protocol)) for protocol in ("grpc", "rest")]
    comparison = compare(read_run(tmp_path / "ab_report.csv"), new, 5.0)
    (one,) = comparison.matched
    assert [(change.figure, change.old, change.new) for change in one.changes[:3]] == [
        ("throughput", 20.0, 50.0),
        ("p50", 50.0, 50.0),
        ("p99", 99.0, 99.0),
    ]
    assert one.setting["protocol"] == "rest"
    assert not one.is_repeated
    assert [alone.setting["protocol"] for alone in comparison.only_new] == ["grpc"]


def test_a_csv_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("TS throughput,Workers\n1.0,one\n")
    with pytest.raises(PointsInvalid, match=r"x\.csv is no ab_report\.csv"):
        read_run(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("new", "code", "said"),
    [
        ([100.0, 101.0, 99.0], 0, "0 better, 0 worse"),
        ([150.0, 151.0, 149.0], 0, "1 better, 0 worse"),
        ([50.0, 51.0, 49.0], 1, "0 better, 1 worse"),
    ],
    ids=["same", "better", "worse"],
)
def test_the_exit_code_says_whether_anything_is_worse(tmp_path: Path, new: list[float], code: int, said: str) -> None:
    for name, speeds in (("old", [100.0, 101.0, 99.0]), ("new", new)):
        write_points(tmp_path / f"{name}.json", [point(*map(run, speeds))], {})
    ended = CliRunner().invoke(APP, ["bench-compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert ended.exit_code == code
    assert said in ended.output
    assert "all: " in ended.output


@pytest.mark.parametrize("old", ["nothing in common", "no file"])
def test_what_cannot_be_compared_has_a_code_of_its_own(tmp_path: Path, old: str) -> None:
    write_points(tmp_path / "new.json", [point(run(1.0))], {})
    if old == "nothing in common":
        write_points(tmp_path / "old.json", [point(run(1.0), clients=3)], {})
    ended = CliRunner().invoke(APP, ["bench-compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert ended.exit_code == 2
