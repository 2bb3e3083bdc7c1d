"""Points are written as JSON and read back."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from torchd_clients.bench.measurement import Measurement, Point, ServerFigures, Usage
from torchd_clients.bench.points import PERCENTILES, PointsInvalid, read_about, read_points, write_points


def point() -> Point:
    latencies = array("d", sorted(0.1 + (number * 7919 % 10_007) / 13 for number in range(5000)))
    kept = Measurement(2.5, latencies, {"HTTP 503": 3}, 1.25, 2)
    return Point(
        model="bert",
        protocol="grpc",
        device="cpu",
        workers=2,
        batch_size=8,
        batch_delay_ms=5,
        clients=32,
        rate=0.0,
        optimization="bf16",
        input="short.txt",
        measurement=kept,
        repeats=(kept, Measurement(2.5, array("d", [1.0]))),
        usage=Usage(3.5, 512.25, 4),
        server=ServerFigures(1.5, 20.0, 6.5, {8.0: 10, inf: 1}, {0.5: 7}, {50.0: 0.25}, {99.0: 19.5}),
        threads=1,
    )


def test_points_come_back_with_latencies_of_four_digits(tmp_path: Path) -> None:
    wrote = point()
    write_points(tmp_path / "run.json", [wrote], {"when": "today"})
    (read,) = read_points(tmp_path / "run.json")
    bare = array("d")
    assert replace(read, measurement=wrote.measurement, repeats=()) == replace(wrote, repeats=())
    assert replace(read.measurement, latencies_ms=bare) == replace(wrote.measurement, latencies_ms=bare)
    assert len(read.repeats) == 2
    assert read.measurement.answered == wrote.measurement.answered
    for percent in PERCENTILES:
        assert read.measurement.percentile_ms(percent) == pytest.approx(
            wrote.measurement.percentile_ms(percent), rel=5e-4
        )
    assert read_about(tmp_path / "run.json") == {"when": "today"}


def test_the_document_says_what_a_small_script_wants_to_know(tmp_path: Path) -> None:
    write_points(tmp_path / "run.json", [point()], {})
    (one,) = json.loads((tmp_path / "run.json").read_text())["points"]
    assert one["measurement"]["throughput"] == 2000.0
    assert set(one["measurement"]["percentiles_ms"]) == {"50", "90", "95", "99", "99.9"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 99, "points": []}', '{"format": 1, "points": [{}]}', "x"])
def test_a_document_of_something_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(PointsInvalid, match=r"other\.json"):
        read_points(tmp_path / "other.json")
