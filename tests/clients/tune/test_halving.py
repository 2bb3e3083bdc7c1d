"""The search itself, on cost surfaces that are known: it ends, it is frugal, and it finds what is there."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from torchd_clients.tune.halving import Halving, Rules, Task

Point = tuple[int, int, int]


def around(point: Point) -> list[Point]:
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    moved = [tuple(a + b for a, b in zip(point, step, strict=True)) for step in steps]
    return [(x, y, z) for x, y, z in moved if 0 <= x < 6 and 0 <= y < 6 and 0 <= z < 3]


def run(search: Halving[Point], cost: dict[Point, float | None], noise: float = 0.0) -> list[Task[Point]]:
    chance, done = random.Random(0), []
    while tasks := search.tasks():
        for task in tasks:
            score = cost[task.setting]
            search.tell(task, None if score is None else score * (1 + noise * chance.uniform(-1, 1) / 2**task.rung))
            done.append(task)
    return done


def hill(top: Point) -> dict[Point, float | None]:
    return {
        (x, y, z): 100 * 0.8 ** (abs(x - top[0]) + abs(y - top[1]) + abs(z - top[2]))
        for x in range(6)
        for y in range(6)
        for z in range(3)
    }


tops = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2))


@given(tops, st.floats(0, 0.05))
def test_it_climbs_to_the_top_of_a_hill_whatever_noise_there_is(top: Point, noise: float) -> None:
    search = Halving([(0, 0, 0), (5, 5, 0), (2, 2, 2)], around)
    done = run(search, hill(top), noise)
    assert search.best == top
    assert len(done) == len(set(done)) < 108


@given(st.dictionaries(tops, st.one_of(st.none(), st.floats(-10, 1000)), min_size=3), st.randoms())
def test_it_ends_on_any_surface_with_the_best_of_what_it_measured_longest(
    some: dict[Point, float | None], chance: random.Random
) -> None:
    cost = dict.fromkeys(hill((0, 0, 0))) | some
    search = Halving([(0, 0, 0), *list(some)[:3]], around)
    done = run(search, cost)
    longest = [task.setting for task in done if task.rung == Rules().rungs - 1]
    known = {point: score for point in longest if (score := cost[point]) is not None}
    if known:
        # Less than the least gain is not gone after.
        assert search.best in known
        best = max(known.values())
        assert known[search.best] >= best - abs(best) * 0.1
    else:
        assert search.best is None


@given(tops, st.integers(0, 60))
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(top: Point, at: int) -> None:
    whole = run(Halving([(0, 0, 0), (5, 5, 0)], around), hill(top))
    again, known = Halving([(0, 0, 0), (5, 5, 0)], around), set(whole[:at])
    asked = []
    while tasks := again.tasks():
        for task in tasks:
            if task not in known:
                asked.append(task)
            again.tell(task, hill(top)[task.setting])
    assert asked == whole[at:]


def test_only_the_better_part_of_a_field_is_measured_longer() -> None:
    cost: dict[Point, float | None] = {(x, 0, 0): float(x) for x in range(6)}
    done = run(Halving([(x, 0, 0) for x in range(6)], lambda point: []), cost)
    assert [sum(task.rung == rung for task in done) for rung in range(3)] == [6, 2, 1]


def test_it_stops_when_nothing_near_the_best_is_better() -> None:
    flat: dict[Point, float | None] = dict.fromkeys(hill((0, 0, 0)), 10.0)
    done = run(Halving([(2, 2, 1)], around), flat)
    # Its own three rungs, and its six neighbours, of which those kept end at the top.
    assert len(done) <= 3 + 6 + 2 + 1


def test_what_cannot_be_used_is_never_the_best() -> None:
    search = Halving([(0, 0, 0), (1, 0, 0)], lambda point: [])
    run(search, {(0, 0, 0): None, (1, 0, 0): None})
    assert search.best is None


def test_over_the_bound_everywhere_the_nearest_to_it_is_told() -> None:
    search = Halving([(0, 0, 0), (1, 0, 0), (2, 0, 0)], lambda point: [])
    run(search, {(0, 0, 0): -3.0, (1, 0, 0): -1.1, (2, 0, 0): -2.0})
    assert search.best == (1, 0, 0)


def test_stopped_in_the_middle_the_best_so_far_is_known() -> None:
    search = Halving([(0, 0, 0), (1, 0, 0)], lambda point: [])
    first, second = search.tasks()
    search.tell(first, 1.0)
    assert search.best == (0, 0, 0)
    search.tell(second, 2.0)
    assert search.best == (1, 0, 0)
