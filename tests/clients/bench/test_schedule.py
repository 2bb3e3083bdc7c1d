"""The arithmetic of a load on a clock of the test's own."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from torchd_clients.bench.load import Load
from torchd_clients.bench.schedule import Schedule


def started(load: Load, begin: float = 0.0) -> Schedule:
    schedule = Schedule(load)
    schedule.start(begin)
    schedule.measure(begin)
    return schedule


def ask(schedule: Schedule, now: float) -> float:
    taken = schedule.take(now)
    assert taken is not None
    return taken


def test_a_closed_loop_counts_from_sending_to_the_answer() -> None:
    schedule = started(Load(clients=1, seconds=1.0))
    asked = ask(schedule, 0.25)
    schedule.ended(asked, 0.375, "")
    assert list(schedule.latencies) == [125.0]


def test_a_closed_loop_of_n_requests_asks_and_counts_exactly_n() -> None:
    schedule = started(Load(clients=4, requests=10))
    now, on_their_way, asked = 0.0, [], 0
    while not schedule.is_over(now):
        while len(on_their_way) < 4 and (taken := schedule.take(now)) is not None:
            on_their_way.append(taken)
            asked += 1
        now += 0.1
        schedule.ended(on_their_way.pop(0), now, "bad" if asked == 5 else "")
    assert asked == 10
    assert len(schedule.latencies) + sum(schedule.errors.values()) == 10
    assert schedule.window == (0.0, pytest.approx(1.0))


def test_what_was_asked_in_the_warm_up_counts_when_it_ends_in_the_window_and_not_before() -> None:
    schedule = Schedule(Load(clients=2, seconds=1.0, warmup_seconds=5.0))
    schedule.start(0.0)
    first, second = ask(schedule, 0.0), ask(schedule, 0.0)
    schedule.ended(first, 4.0, "")
    assert not schedule.is_warm(4.9)
    assert schedule.is_warm(5.0)
    schedule.measure(6.0)
    schedule.ended(second, 6.5, "")
    assert list(schedule.latencies) == [6500.0]


def test_a_warm_up_of_requests_goes_on_until_the_others_are_warm_too() -> None:
    schedule = Schedule(Load(clients=1, seconds=1.0, warmup_requests=2))
    schedule.start(0.0)
    for now in (0.0, 1.0):
        assert not schedule.is_warm(now)
        schedule.ended(ask(schedule, now), now, "")
    assert schedule.is_warm(2.0)
    assert schedule.take(2.0) is not None


def test_without_a_warm_up_nothing_is_asked_before_the_beginning() -> None:
    schedule = Schedule(Load(clients=1, seconds=1.0))
    schedule.start(0.0)
    assert schedule.is_warm(0.0)
    assert schedule.take(0.0) is None
    schedule.measure(1.0)
    assert schedule.take(0.9) is None
    assert schedule.take(1.0) == 1.0


def test_a_good_answer_after_the_window_does_not_count_but_one_that_never_comes_does() -> None:
    schedule = started(Load(clients=3, seconds=1.0))
    inside, late, lost = (ask(schedule, 0.5) for _ in range(3))
    schedule.ended(inside, 0.9, "")
    assert schedule.take(1.0) is None
    assert not schedule.is_over(1.5)
    schedule.ended(late, 1.5, "")
    schedule.failed(lost, 30.0, "no answer")
    assert schedule.is_over(30.0)
    assert len(schedule.latencies) == 1
    assert schedule.errors == {"no answer": 1}
    assert schedule.window == (0.0, 1.0)


def test_answers_slower_than_the_whole_window_still_count() -> None:
    schedule = started(Load(clients=2, seconds=1.0))
    both = [ask(schedule, 0.0), ask(schedule, 0.0)]
    for one in both:
        schedule.ended(one, 4.0, "")
    assert list(schedule.latencies) == [4000.0, 4000.0]
    assert schedule.window == (0.0, 4.0)


def due_times(load: Load) -> list[float]:
    random, now, due = Random(load.seed), 0.0, []
    while (now := now + random.expovariate(load.rate)) < load.seconds:
        due.append(now)
    return due


def test_an_open_loop_counts_from_when_a_request_was_due_however_late_it_is_asked() -> None:
    load = Load(rate=100.0, seconds=1.0, seed=3)
    schedule, due = started(load), due_times(load)
    asked = []
    # Nobody is free for two seconds: everything that fell due meanwhile is asked then, and has waited.
    while (taken := schedule.take(2.0)) is not None:
        asked.append(taken)
        schedule.ended(taken, 2.0, "")
    assert asked == due
    assert list(schedule.latencies) == pytest.approx([(2.0 - one) * 1000 for one in due])
    assert schedule.is_over(2.0)
    assert schedule.window == (0.0, 2.0)


def test_the_gaps_of_an_open_loop_are_those_of_poisson_arrivals() -> None:
    load = Load(rate=1000.0, seconds=20.0, seed=1)
    schedule = started(load)
    due = []
    while (taken := schedule.take(30.0)) is not None:
        due.append(taken)
    gaps = [after - before for before, after in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.001, rel=0.05)
    # Of exponential gaps the deviation is the mean, and 1/e are longer than it.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.02)


def test_an_open_loop_asks_nothing_before_it_is_due_and_says_when_that_is() -> None:
    load = Load(rate=10.0, requests=1, seed=2)
    schedule = started(load)
    due = schedule.next_due()
    assert due is not None
    assert schedule.take(due - 1e-6) is None
    assert schedule.take(due) == due
    assert schedule.next_due() is None


def test_what_nobody_was_free_to_ask_in_time_is_an_error_and_not_forgotten() -> None:
    load = Load(rate=100.0, seconds=1.0, seed=3)
    schedule = started(load)
    schedule.give_up(0.5, 10.0, "no answer")
    late = sum(one < 0.5 for one in due_times(load))
    assert schedule.errors == {"no answer": late}


def test_a_call_given_back_unseen_is_asked_again_and_its_time_goes_on() -> None:
    schedule = started(Load(clients=1, requests=1))
    asked = ask(schedule, 0.0)
    schedule.again(asked)
    assert not schedule.is_over(5.0)
    assert ask(schedule, 5.0) == asked
    schedule.ended(asked, 6.0, "")
    assert list(schedule.latencies) == [6000.0]
    assert schedule.is_over(6.0)


def test_a_client_that_cannot_ask_is_an_error_only_while_there_is_something_to_ask() -> None:
    schedule = started(Load(clients=2, requests=2))
    asked = ask(schedule, 0.0)
    schedule.refused(0.5, "no server")
    schedule.refused(0.6, "no server")  # the other one is still on its way
    schedule.ended(asked, 1.0, "")
    schedule.refused(2.0, "no server")
    assert schedule.errors == {"no server": 1}
    assert len(schedule.latencies) == 1
    timed = started(Load(clients=1, seconds=1.0))
    timed.refused(0.5, "no server")
    timed.refused(1.5, "no server")
    assert timed.errors == {"no server": 1}
