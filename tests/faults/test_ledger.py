"""The checker against histories that are wrong in one way each: what has not been seen to fail proves nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from faults.ledger import Answered, Event, Executed, Fault, GivenUp, Ledger, Refused, Sent, Violation, check, echo_of

GOOD: list[Event] = [
    Sent("a", 0.0, deadline=1.0),
    Sent("b", 0.0),
    Sent("c", 0.1),
    Sent("d", 0.1),
    Executed("a", 0.2, pid=7, version="1.0"),
    Answered("a", 0.3, echo="a"),
    Executed("b", 0.3, pid=7, version="1.0"),
    Fault(7, 0.4, "SIGKILL"),
    Answered("b", 0.5, code="UNAVAILABLE", reason="WORKER_DIED"),
    GivenUp("c", 0.5),
    Executed("d", 0.6, pid=8, version="1.0"),
    Answered("d", 0.7, echo="d", code=200),
    Sent("e", 0.8),
    Refused("e", 0.9),
]


def test_a_good_history_passes() -> None:
    check(GOOD)


@pytest.mark.parametrize(
    ("promise", "history"),
    [
        ("P01", [Sent("a", 0.0), Executed("a", 0.1, 7, "1")]),
        ("P01", [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Answered("a", 0.2, "a"), Answered("a", 0.3, "a")]),
        ("P01", [Answered("stranger", 0.1, "stranger")]),
        ("P01", [Executed("stranger", 0.1, 7, "1")]),
        ("P02", [Sent("a", 0.0, deadline=0.5), Executed("a", 0.1, 7, "1"), Answered("a", 0.8, "a")]),
        ("P02", [Sent("a", 0.0, deadline=0.5), Answered("a", 0.8, code=504, reason="DEADLINE_IN_QUEUE")]),
        ("P03", [Sent("a", 0.0), Answered("a", 0.1, code="INTERNAL", reason="INTERNAL")]),
        ("P03", [Sent("a", 0.0), Answered("a", 0.1, code="UNAVAILABLE")]),
        ("P03", [Sent("a", 0.0), Answered("a", 0.1, code="NOT_FOUND", reason="QUEUE_FULL")]),
        ("P03", [Sent("a", 0.0), Answered("a", 0.1, code=502)]),
        (
            "P04",
            [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Executed("a", 0.2, 8, "1"), Answered("a", 0.3, echo="a")],
        ),
        ("P05", [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Answered("a", 0.2, echo="b")]),
        ("P05", [Sent("a", 0.0), Answered("a", 0.2, echo="a")]),
        ("P06", [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Answered("a", 0.2, code=500, reason="WORKER_DIED")]),
        (
            "P06",
            [
                Sent("a", 0.0),
                Executed("a", 0.1, 7, "1"),
                Fault(8, 0.2, "SIGKILL"),
                Answered("a", 0.3, code="UNAVAILABLE", reason="WORKER_DIED"),
            ],
        ),
        ("P06", [Sent("a", 0.0), Answered("a", 0.3, code="UNAVAILABLE", reason="WORKER_DIED")]),
        ("P01", [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Refused("a", 0.2)]),
        ("P09", [Sent("a", 0.0), GivenUp("a", 0.1), Executed("a", 0.9, 7, "1")]),
        (
            "P09",
            [Sent("a", 0.0, deadline=0.2), Answered("a", 0.2, code="DEADLINE_EXCEEDED"), Executed("a", 0.9, 7, "1")],
        ),
        (
            "P09",
            [Sent("a", 0.0), Executed("a", 0.1, 7, "1"), Answered("a", 0.2, code=504, reason="DEADLINE_IN_QUEUE")],
        ),
        (
            "P09",
            [
                Sent("a", 0.0),
                Executed("a", 0.1, 7, "1"),
                Answered("a", 0.2, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL"),
            ],
        ),
    ],
)
def test_a_wrong_history_is_caught(promise: str, history: list[Event]) -> None:
    with pytest.raises(Violation, match=promise):
        check(history)


def test_a_wrong_history_is_found_inside_a_long_one() -> None:
    crowd: list[Event] = [
        event
        for n in range(200)
        for event in (Sent(f"n{n}", n), Executed(f"n{n}", n + 0.1, 7, "1"), Answered(f"n{n}", n + 0.2, f"n{n}"))
    ]
    lost: list[Event] = [Sent("lost", 50.0), Executed("lost", 50.1, 7, "1")]
    with pytest.raises(Violation) as caught:
        check([*crowd, *lost])
    assert caught.value.events == lost


def test_the_smallest_counter_example_is_shown() -> None:
    twice: list[Event] = [
        Sent("twice", 1.0),
        Executed("twice", 1.1, 7, "1"),
        Executed("twice", 1.2, 8, "1"),
        Answered("twice", 1.3, "twice"),
    ]
    with pytest.raises(Violation) as caught:
        check([*twice, Sent("lost", 5.0)])
    assert caught.value.events == [Sent("lost", 5.0)]
    assert "lost" in str(caught.value)


def test_a_request_brought_down_by_its_neighbour_is_explained() -> None:
    """P06: a deadly request takes with it what ran in the same worker, and nothing else."""
    check(
        [
            Sent("bad", 0.0, deadly=True),
            Sent("mate", 0.0),
            Executed("bad", 0.1, 7, "1"),
            Executed("mate", 0.1, 7, "1"),
            Answered("bad", 0.2, code=500, reason="WORKER_DIED"),
            Answered("mate", 0.2, code=500, reason="WORKER_DIED"),
        ]
    )


def test_a_cancelled_request_may_have_been_running() -> None:
    check([Sent("a", 0.0), Executed("a", 0.1, 7, "1"), GivenUp("a", 0.2)])


def test_the_ledger_reads_what_handlers_append(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "executions")
    assert ledger.executed() == []
    first = ledger.sent(timeout=5)
    now = time.monotonic()
    ledger.executions.write_text(f"run {first} 7 1.0 {now}\ntold {first} 7 1.0 {now}\n")
    ledger.answered(first, echo=first)
    assert ledger.executed() == [Executed(first, now, 7, "1.0")]
    assert ledger.told() == {first}
    check(ledger.history())


def test_ids_are_never_the_same(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "executions")
    assert len({ledger.sent() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("body", "echo"), [(b'{"id": "a"}', "a"), (b"{}", None), (b"no json", None), (b"[1]", None), (b"\xff", None)]
)
def test_an_echo_is_read_from_an_answer(body: bytes, echo: str | None) -> None:
    assert echo_of(body) == echo
