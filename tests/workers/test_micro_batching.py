"""MicroBatching: steps side by side, in the order of the batch, and no batch that waits for ever."""

from __future__ import annotations

import json
import threading

import pytest

from torchd_protos.frames import Failure, Loaded

pytest.importorskip("torch")
from torchd_workers.handlers.micro_batching import MicroBatching


class Steps:
    """A handler of three steps that writes down who did what."""

    def __init__(self):
        self.context = None
        self.sizes = []
        self.threads = {"preprocess": set(), "inference": set()}

    def preprocess(self, data):
        self.sizes.append(len(data))
        self.threads["preprocess"].add(threading.current_thread().name)
        return [row["body"] for row in data]

    def inference(self, data):
        return [value * 10 for value in data]

    def postprocess(self, data):
        return [value + 1 for value in data]


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def micro(steps):
    micro = MicroBatching(steps, micro_batch_size=2)
    yield micro
    micro.shutdown()


def rows(count):
    return [{"body": number} for number in range(count)]


def test_answers_come_in_the_order_of_the_batch(micro, steps):
    micro.parallelism = {"preprocess": 2, "inference": 3}
    assert micro.handle(rows(7)) == [number * 10 + 1 for number in range(7)]
    assert sorted(steps.sizes) == [1, 2, 2, 2]
    assert micro.parallelism == {"preprocess": 2, "inference": 3, "postprocess": 1}


def test_steps_run_side_by_side(micro, steps):
    """The second part is prepared while the first is in inference: neither could go on alone."""
    met = threading.Barrier(2, timeout=30)

    def inference(data):
        if micro.get_micro_batch_idx() == 0:
            met.wait()
        return data

    def preprocess(data):
        if micro.get_micro_batch_idx() == 1:
            met.wait()
        return [row["body"] for row in data]

    steps.inference, steps.preprocess = inference, preprocess
    assert micro.handle(rows(4)) == [1, 2, 3, 4]
    assert micro.get_micro_batch_idx() is None


@pytest.mark.parametrize("step", ["preprocess", "inference", "postprocess"])
@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
def test_a_step_that_raises_fails_the_batch_and_the_next_one_is_answered(micro, steps, step, error):
    """Section 6.6: in TorchServe the batch waits for ever."""
    whole = getattr(steps, step)

    def broken(data):
        raise error

    setattr(steps, step, broken)
    with pytest.raises(type(error)):
        micro.handle(rows(5))
    setattr(steps, step, whole)
    assert micro.handle(rows(1)) == [1]


@pytest.mark.parametrize(
    ("parallelism", "message"),
    [({"inference": 0}, "inference cannot run with 0 threads"), ({"thinking": 1}, "knows no step 'thinking'")],
)
def test_a_step_needs_a_thread_and_a_name(micro, parallelism, message):
    with pytest.raises(ValueError, match=message):
        micro.parallelism = parallelism


HANDLER = """
from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler.base_handler import BaseHandler


class Micro(BaseHandler):
    def initialize(self, context):
        options = context.model_yaml_config["micro_batching"]
        self.handle = MicroBatching(self, options["micro_batch_size"], options["parallelism"])
        self.initialized = True

    def preprocess(self, data):
        return [bytes(row["body"]) for row in data]

    def inference(self, data):
        if b"broken" in data:
            raise ValueError("broken")
        return data

    def postprocess(self, data):
        return [part.decode() for part in data]
"""


def test_a_handler_that_puts_it_in_the_place_of_handle_runs_in_a_worker(start, tmp_path):
    (tmp_path / "handler.py").write_text(HANDLER)
    config = {"micro_batching": {"micro_batch_size": 2, "parallelism": {"preprocess": 2, "inference": 2}}}
    worker = start(tmp_path)
    assert worker.load(config_json=json.dumps(config)) == Loaded()
    assert [bytes(answer.body) for answer in worker.run(b"a", b"b", b"c")] == [b"a", b"b", b"c"]
    assert all(isinstance(answer, Failure) for answer in worker.run(b"a", b"b", b"broken", first=4))
    assert worker.ask(b"d").body == b"d"
