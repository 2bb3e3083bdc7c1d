"""Which requests are taken together by cost: who goes, who is passed over, and for how long at most."""

from __future__ import annotations

import itertools
import random

import pytest
from fakes import ManualClock, call
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from torchd_protos.frames import Call, Header
from torchd_server.batching.by_cost import ByCost, CostLimits, _windows
from torchd_server.batching.costs import HEADER, cost_by
from torchd_server.batching.price import Price
from torchd_server.request import Request

COSTS = st.sampled_from([1, 2, 8, 9, 10, 64, 65, 128, 1000])


def length_of(call: Call) -> float:
    return float(len(call.parts[0].body))


class Bench:
    """A queue, its clock, and requests numbered from 1; costs are the lengths of bodies."""

    def __init__(self, *costs: int, budget: float = float("inf"), patience: float = float("inf")) -> None:
        self.clock = ManualClock()
        self.queue = ByCost(length_of, CostLimits(budget, patience), self.clock)
        self.numbers = itertools.count(1)
        for cost in costs:
            self.put(cost)

    def put(self, cost: int) -> Request:
        request = Request(call(bytes(cost)), next(self.numbers), 1e9, self.clock, lambda _: None)
        self.queue.put(request)
        return request

    def take(self, most: int) -> list[int]:
        """The costs of the next batch."""
        return [cost_of(request) for request in self.queue.take(most)]

    def knows(self, overhead: float) -> None:
        """Batches have told what the call costs beside its input, in units."""
        for cost in (10, 20, 40) * 10:
            asked = self.put(cost)
            assert self.queue.take(1) == [asked]
            self.queue.ran([asked], (overhead + cost) / 1000)


def cost_of(request: Request) -> int:
    return len(request.call.parts[0].body)


def test_no_cost_that_clients_claim_stops_the_queue() -> None:
    """Sums that are no numbers any more would compare with nothing, and no batch would be the best."""
    queue = ByCost(cost_by("bytes"), CostLimits(), ManualClock())
    asked = call(headers=[Header(HEADER, "1e308")])
    for number in range(1, 21):
        queue.put(Request(asked, number, 1e9, ManualClock(), lambda _: None))
    while queue:
        taken = queue.take(8)
        assert taken
        queue.ran(taken, 0.01)
    for number in range(21, 24):
        queue.put(Request(call(), number, 1e9, ManualClock(), lambda _: None))
    assert len(queue.take(8)) == 3


def test_neighbours_by_cost_go_together() -> None:
    bench = Bench(100, 10, 110, 12, 105, 11)
    assert bench.take(3) == [100, 110, 105]
    assert bench.take(3) == [10, 12, 11]


def test_what_would_cost_more_in_padding_than_a_batch_saves_waits() -> None:
    bench = Bench()
    bench.knows(overhead=5)
    for cost in (100, 10, 12):
        bench.put(cost)
    assert bench.take(8) == [100]
    assert bench.take(8) == [10, 12]


def test_where_the_call_is_all_that_costs_batches_are_filled() -> None:
    bench = Bench()
    bench.knows(overhead=1e6)
    for cost in (100, 10, 12, 90, 11, 95):
        bench.put(cost)
    assert len(bench.take(4)) == 4


def test_equal_costs_keep_the_order_of_arrival_and_fill_the_batch() -> None:
    bench = Bench()
    bench.knows(overhead=0)
    requests = [bench.put(64) for _ in range(6)]
    assert bench.queue.take(4) == requests[:4]


def test_a_budget_bounds_longest_times_count_and_one_that_exceeds_it_goes_alone() -> None:
    bench = Bench(100, 100, 100, 500, 100, budget=250)
    assert bench.take(8) == [100, 100]
    assert bench.take(8) == [100, 100]
    assert bench.take(8) == [500]


def test_one_that_has_waited_too_long_is_passed_over_only_by_others_that_have() -> None:
    bench = Bench(patience=5.0)
    bench.knows(overhead=5)
    old = [bench.put(cost) for cost in (100, 10)]
    bench.clock.advance(5.0)
    fresh = [bench.put(cost) for cost in (100, 101, 10)]
    assert bench.queue.take(8) == [old[0]], "a fresh one went with it, and made it no faster"
    assert bench.queue.take(8) == [old[1]]
    assert bench.queue.take(8) == fresh[:2]


def test_a_client_that_claims_an_absurd_cost_changes_nothing_for_others() -> None:
    bench = Bench()
    bench.queue = ByCost(lambda call: 1e300 if call.request_id else length_of(call), CostLimits(), bench.clock)
    bench.knows(overhead=5)
    liar = Request(call(b"x", request_id="liar"), next(bench.numbers), 1e9, bench.clock, lambda _: None)
    bench.queue.put(liar)
    for cost in (100, 10, 12):
        bench.put(cost)
    assert bench.queue.take(8) == [liar]
    bench.queue.ran([liar], 0.01)
    assert bench.take(8) == [100]
    assert bench.take(8) == [10, 12]


def test_taking_none_or_from_an_empty_queue_gives_none() -> None:
    assert Bench().take(8) == []
    assert Bench(1).take(0) == []


def test_taking_all_empties_it_in_the_order_of_arrival() -> None:
    bench = Bench(100, 10, 110)
    assert [cost_of(request) for request in bench.queue.take_all()] == [100, 10, 110]
    assert (len(bench.queue), bench.take(8)) == (0, [])


def test_choosing_from_a_long_queue_of_large_batches_stays_cheap() -> None:
    """It looks at some thousand windows, not at a million."""
    bench = Bench(*range(1, 3000))
    batch = bench.queue.take(1024)
    assert 1 <= len(batch) <= 1024
    assert sum(1 for _ in _windows(1023, 2047, 1024)) < 3000


@given(costs=st.lists(COSTS, min_size=1, max_size=60), most=st.integers(1, 9), stream=st.lists(COSTS, max_size=200))
def test_nobody_waits_longer_than_those_before_it_take(costs: list[int], most: int, stream: list[int]) -> None:
    """Whatever comes later, and however well it would fit: who has n before it goes with batch n + 1 at the latest."""
    bench = Bench(*costs[:-1])
    last = bench.put(costs[-1])
    coming = itertools.cycle(stream or [1])
    for number in range(len(costs)):
        for _ in range(most):
            bench.put(next(coming))
        batch = bench.queue.take(most)
        bench.queue.ran(batch, 0.01 * len(batch))
        if last in batch:
            return
        assert number + 1 < len(costs), "it was starved"


class ByCostBesideAList(RuleBasedStateMachine):
    """Every operation, in any order, on the queue and on a list."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(budget=500, patience=1.0)
        self.queue = self.bench.queue
        self.list: list[Request] = []
        self.everybody: list[Request] = []
        self.running: list[list[Request]] = []

    @rule(cost=COSTS)
    def put(self, cost: int) -> None:
        request = self.bench.put(cost)
        self.list.append(request)
        self.everybody.append(request)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.4, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @rule(most=st.integers(0, 6))
    def take(self, most: int) -> None:
        batch = self.queue.take(most)
        assert len(batch) <= most
        assert bool(batch) == bool(self.list and most)
        if not batch:
            return
        assert batch == sorted(batch, key=lambda request: request.number)
        assert batch[0] is self.list[0], "the oldest was left behind"
        assert len(batch) == 1 or max(map(cost_of, batch)) * len(batch) <= 500
        self.check_patience(batch)
        self.list = [request for request in self.list if request not in batch]
        self.running.append(batch)

    def check_patience(self, batch: list[Request]) -> None:
        since = self.bench.clock.time() - 1.0
        passed = [request for request in self.list if request not in batch and request.received_at <= since]
        fresh = [request for request in batch if request.received_at > since]
        assert not (passed and fresh), "a fresh one passed over one that has waited for long"

    @rule(seconds=st.sampled_from([None, 0.0, 0.01, 3.0]))
    def ran(self, seconds: float | None) -> None:
        if self.running:
            self.queue.ran(self.running.pop(0), seconds)

    @rule()
    def dies_before_it_began(self) -> None:
        if self.running:
            back = self.running.pop()
            self.queue.ran(back, None)
            self.queue.put_back(back)
            self.list = sorted(self.list + back, key=lambda request: request.number)

    @rule(number=st.integers(0, 30))
    def discard(self, number: int) -> None:
        if number < len(self.everybody):
            self.queue.discard(self.everybody[number])
            self.list = [request for request in self.list if request is not self.everybody[number]]

    @rule()
    def take_all(self) -> None:
        assert self.queue.take_all() == self.list
        self.list = []

    @invariant()
    def both_hold_the_same(self) -> None:
        assert len(self.queue) == len(self.list)
        if self.list:
            assert self.queue.oldest() is self.list[0]


TestByCost = ByCostBesideAList.TestCase


@pytest.mark.parametrize("overhead", [0.0, 18.0, 800.0])
def test_what_the_call_costs_is_learnt_within_noise(overhead: float) -> None:
    price, chance = Price(), random.Random(3)
    assert price.overhead(7.0) == 7.0
    for _ in range(300):
        units = chance.choice([1, 2, 4, 8]) * chance.randint(8, 128)
        price.ran(units, (overhead + units) * 0.002 * chance.uniform(0.9, 1.1))
    assert price.overhead(7.0) == pytest.approx(overhead, rel=0.15, abs=15)
    assert price.seconds > 0


def test_batches_of_one_size_teach_nothing() -> None:
    price = Price()
    for number in range(50):
        price.ran(512, 0.1 + number % 2 / 100)
    assert price.overhead(99.0) == 99.0


def test_a_price_that_falls_with_size_is_all_overhead() -> None:
    price = Price()
    for units in (10, 100) * 20:
        price.ran(units, 1 / units)
    assert price.overhead(0.0) > 1000
