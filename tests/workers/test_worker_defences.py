"""What once cost a worker its life, or a client its answer, and must not again: a real worker process each."""

from __future__ import annotations

import pytest

from torchd_protos.frames import Batch, Call, Credit, Item, Loaded, Part, Reply

WINDOW = 1024 * 1024
REFUSING = '''
from ts.service import PredictionException


class Plain(PredictionException):
    """Knows nothing of its parent."""

    def __init__(self):
        self.args = ("not at night",)


class Half(PredictionException):
    """Has the status, in words, and no message."""

    def __init__(self):
        self.error_code = "429"


class Hostile(PredictionException):
    """Cannot even be asked."""

    def __init__(self):
        pass

    @property
    def message(self):
        raise RuntimeError("no message")

    @property
    def error_code(self):
        raise RuntimeError("no code")


KINDS = {b"plain": Plain, b"half": Half, b"hostile": Hostile}


class Refusing:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        bodies = [bytes(row["body"]) for row in data]
        if bodies[0] in KINDS:
            raise KINDS[bodies[0]]()
        return bodies
'''


@pytest.mark.parametrize(
    "body", [b"9" * 5000, b"-" + b"1" * 5000, b'{"a": [1' + b"0" * 5000 + b"]}", b"[" * 100_000], ids=lambda b: b[:8]
)
def test_json_that_python_will_not_read_reaches_the_handler_as_bytes(loaded, body):
    """An integer of 5,000 digits is JSON, and yet no int: int() raises a plain ValueError."""
    worker = loaded("echo", decode_input=True)
    worker.send(Batch(1, [Item(1, 60_000, Call(parts=[Part("body", "application/json", body)]))]))
    assert [bytes(answer.body) for answer in worker.answers()] == [body]
    assert worker.ask(b"alive").body == b"alive"


@pytest.mark.parametrize("kind", [b"plain", b"half", b"hostile"])
def test_a_prediction_exception_whose_init_skipped_ours_is_a_typed_answer(start, tmp_path, kind):
    (tmp_path / "handler.py").write_text(REFUSING)
    worker = start(tmp_path)
    assert worker.load() == Loaded()
    answer = worker.ask(kind)
    assert (answer.kind, answer.status) == ("PredictionFailed", 500)
    assert answer.message
    assert worker.ask(b"alive").body == b"alive"


def test_a_stream_that_outlasts_its_first_deadline_is_delivered_whole(loaded):
    """The deadline of a stream moves with each chunk, and only the daemon knows it: the worker has no clock for it."""
    worker = loaded("stream")
    # The time has passed before the second chunk finds the window full.
    worker.send_batch(b'{"chunks": 4, "size": %d}' % WINDOW, remaining_ms=1)
    bodies = []
    while (answer := worker.until(Reply)).more:
        bodies.append(bytes(answer.body))
        worker.send(Credit(1, WINDOW + 256))
    assert bodies == [b"%d" % number * WINDOW for number in range(4)]
    assert (bytes(answer.body), answer.end_of_step) == (b"end", True)
