"""A model split over two ranks, and the documentation's DeepSpeed handler, through a daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness.archives import MODELS
from harness.byte_models import byte_tokenizer, endless_llama, save
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import GrpcSurface, RestSurface, StreamBroken
from harness.watched import LOADING, Watched, leaving_nothing, listening, pack_watched, sockets_within_reach

from torchd_archiver.packing import PackRequest, pack

# Ranks load torch and transformers for seconds, on a busy machine for many. One daemon serves all tests of this file.
pytestmark = pytest.mark.timeout(400)

# With 10,000 tokens a text takes minutes.
ENDLESS = {"prompt": "x", "max_new_tokens": 10_000}
FEW_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Served:
    """The daemon of this file and its clients."""

    daemon: Daemon
    grpc: GrpcSurface
    rest: RestSurface
    llama: Watched


@pytest.fixture(scope="module", autouse=True)
def nothing_leaks(tmp_path_factory: pytest.TempPathFactory, stubs: Path) -> Iterator[Path]:
    """As for other end-to-end tests, of all of this file together; gives its folder."""
    folder = tmp_path_factory.mktemp("tensor")
    with leaving_nothing(folder):
        yield folder


@pytest.fixture(scope="module")
def served(nothing_leaks: Path) -> Iterator[Served]:
    """A decoder of ours, and the documented DeepSpeed handler as the page on large models has it."""
    folder = nothing_leaks
    store, seed = folder / "store", MODELS / "seed_deepspeed"
    store.mkdir()
    checkpoint = save(endless_llama(), folder / "checkpoint", shard="20KB")
    (checkpoint / "ds-config.json").write_bytes((seed / "ds-config.json").read_bytes())
    settings = {"parallelType": "tp", "handler": {"model_path": str(checkpoint), "max_new_tokens": 20}}
    models = [pack_watched(store, "llama", folder / "watch", **settings), "deepspeed=deepspeed.mar"]
    config = {"config_file": seed / "model-config.yaml", "export_path": store}
    pack(PackRequest("deepspeed", "1.0", str(seed / "deepspeed_handler.py"), extra_files=(str(checkpoint),), **config))
    with (
        Daemon(folder, store=store, models=models, command="torchserve") as daemon,
        GrpcSurface(daemon) as grpc,
        RestSurface(daemon) as rest,
    ):
        llama = Watched(grpc, "llama", folder / "watch")
        llama.pids()
        yield Served(daemon, grpc, rest, llama)


def whole(prompt: str, count: int) -> str:
    """What the model in one piece says after the prompt."""
    tokens = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
    model = endless_llama()
    made = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False)
    text: str = byte_tokenizer().decode(made[0, tokens.shape[1] :], skip_special_tokens=True)
    return text


def asked(**options: object) -> bytes:
    """A request's body."""
    return json.dumps(options).encode()


def test_a_split_model_streams_the_text_of_the_whole_one(served: Served) -> None:
    """Over both surfaces, in pieces and in one."""
    wanted = whole("to be", 20)
    for client in (served.grpc, served.rest):
        said = [
            json.loads(line)
            for line in b"".join(client.stream("llama", asked(prompt="to be", stream=True))).splitlines()
        ]
        assert "".join(line["text"] for line in said) == wanted
        assert len(said) > 2
        assert client.predict("llama", b"to be").json()["generated_text"] == wanted


def test_the_documented_deepspeed_handler_answers(served: Served) -> None:
    """As the page on large models has it: handler, model-config.yaml, ds-config.json, the checkpoint beside them."""
    eventually(lambda: served.rest.predict("deepspeed", b"to be").error is None, within=LOADING)
    answer = served.rest.predict("deepspeed", b"to be")
    assert (answer.error, answer.body.decode()) == (None, "to be" + whole("to be", 12))


def test_every_socket_of_the_ranks_is_out_of_reach_of_other_hosts(served: Served) -> None:
    """S19, S22: what gloo and the store listen at is on 127.0.0.1, and no socket has a name in a file system."""
    pids = served.llama.pids()
    assert served.grpc.predict("llama", b"to be").error is None
    assert listening(pids)
    assert sockets_within_reach([*pids, served.daemon.pid]) == []


def test_nothing_is_unpickled_in_loading_and_serving(served: Served) -> None:
    """S18. What an object collective sends would be heard."""
    assert served.grpc.predict("llama", asked(prompt="to be")).error is None
    assert served.llama.unpickled() == [[], []]
    assert served.grpc.predict("llama", asked(prompt="to be", objects=True)).error is None
    eventually(lambda: served.llama.unpickled()[1])


def test_a_client_that_leaves_stops_the_generation_on_every_rank(served: Served) -> None:
    """The rest of its 10,000 tokens is written by nobody; the next request is answered by the same processes."""
    pids, before = served.llama.pids(), served.llama.steps()
    stream = served.grpc.stream("llama", asked(**ENDLESS, stream=True))
    next(stream)
    eventually(lambda: min(served.llama.steps_since(before)) > 20, within=LOADING)
    stream.close()
    assert served.rest.predict("llama", b"to be").json()["generated_tokens"] == 20
    assert all(20 < steps < FEW_STEPS for steps in served.llama.steps_since(before))
    assert served.llama.pids() == pids


def test_a_deadline_stops_the_generation_on_every_rank(served: Served) -> None:
    """And costs no process."""
    pids, before = served.llama.pids(), served.llama.steps()
    error = served.rest.predict("llama", asked(**ENDLESS), timeout=1.0).error
    assert error is not None
    assert (error.code, error.reason) == (504, "DEADLINE")
    assert served.grpc.predict("llama", b"to be").json()["generated_tokens"] == 20
    assert all(20 < steps < FEW_STEPS for steps in served.llama.steps_since(before))
    assert served.llama.pids() == pids


def test_a_rank_alone_without_memory_costs_its_pair_and_another_answers(served: Served) -> None:
    """G01. The leader waits in a collective for it, and the client with both, but not for long."""
    pids = served.llama.pids()
    error = served.grpc.predict("llama", asked(prompt="to be", fails_on=1)).error
    assert error is not None
    assert (error.code, error.reason) == ("UNAVAILABLE", "WORKER_DIED")
    assert served.llama.pids(other_than=pids)
    assert "MemoryError: no room for step" in served.daemon.log
    assert served.rest.predict("llama", b"to be").json()["generated_tokens"] == 20


def test_a_rank_killed_in_the_middle_of_a_text_ends_it_and_another_pair_answers(served: Served) -> None:
    """W01: the stream ends with an error of its own, whoever is first to see the end: daemon or leader."""
    pids = served.llama.pids()
    stream = served.grpc.stream("llama", asked(**ENDLESS, stream=True))
    next(stream)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(StreamBroken) as broken:
        list(stream)
    assert broken.value.error.reason == "WORKER_DIED"
    assert served.llama.pids(other_than=pids)
    assert served.rest.predict("llama", b"to be").json()["generated_tokens"] == 20
