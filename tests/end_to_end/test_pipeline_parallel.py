"""Models in stages through a daemon: the documentation's PiPPy handler and our own (field.md row 40)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from harness.archives import MODELS
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.gate import Gate
from harness.surfaces import GrpcSurface, RestSurface, StreamBroken
from harness.watched import (
    LOADING,
    Watched,
    leaving_nothing,
    listening,
    pack_watched,
    sockets_within_reach,
    watch_loading,
)
from transformers.utils.logging import disable_progress_bar

from torchd_archiver.packing import PackRequest, pack

# Its thread would outlive the test.
disable_progress_bar()
# Ranks load torch and transformers for seconds, on a busy machine for many. One daemon serves all tests of this file.
pytestmark = pytest.mark.timeout(400)

PROMPTS = ["to be", "or not to be, that is", "the question", "whether"]
# With 10,000 tokens a text takes minutes.
ENDLESS = {"prompt": "x", "max_new_tokens": 10_000}
FEW_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Served:
    """The daemon of this file and its clients; `loading` is what was said of each rank of "bloom" while it loaded."""

    daemon: Daemon
    grpc: GrpcSurface
    rest: RestSurface
    bloom: Watched
    loading: dict[int, list[str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder in several files, with random weights; its tokens are bytes, and it never ends a text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(5)
    config = transformers.BloomConfig(
        vocab_size=384, hidden_size=32, n_layer=4, n_head=4, pad_token_id=0, eos_token_id=1, initializer_range=0.3
    )
    model = transformers.BloomForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[:2] = 0
    model.save_pretrained(folder, max_shard_size="60KB")
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def nothing_leaks(tmp_path_factory: pytest.TempPathFactory, stubs: Path) -> Iterator[Path]:
    """As for other end-to-end tests, of all of this file together; gives its folder."""
    folder = tmp_path_factory.mktemp("stages")
    with leaving_nothing(folder):
        yield folder


@pytest.fixture(scope="module")
def served(nothing_leaks: Path, checkpoint: Path) -> Iterator[Served]:
    """Our handler, and the documented one with its model-config.yaml, each on two ranks on the CPU."""
    folder = nothing_leaks
    store, seed = folder / "store", MODELS / "seed_pippy"
    store.mkdir()
    settings = {"parallelType": "pp", "handler": {"model_path": str(checkpoint), "max_new_tokens": 20}}
    models = [pack_watched(store, "bloom", folder / "watch", **settings), "pippy=pippy.tar.gz"]
    handler, config = str(seed / "pippy_handler.py"), seed / "model-config.yaml"
    files = (str(checkpoint),)
    pack(
        PackRequest(
            "pippy", "1.0", handler, extra_files=files, config_file=config, export_path=store, archive_format="tgz"
        )
    )
    with (
        Gate(folder / "watch" / "gate") as gate,
        Daemon(folder, store=store, models=models, command="torchserve") as daemon,
        GrpcSurface(daemon) as grpc,
        RestSurface(daemon) as rest,
    ):
        bloom = Watched(grpc, "bloom", folder / "watch")
        loading = watch_loading([bloom, Watched(rest, "bloom", folder / "watch")], gate)
        gate.__exit__(None, None, None)
        bloom.pids()
        yield Served(daemon, grpc, rest, bloom, loading)


def whole(checkpoint: Path, prompts: Sequence[str]) -> list[str]:
    """What the model in one piece makes of each prompt, with twenty tokens more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = []
    for prompt in prompts:
        said = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=20, do_sample=False)
        texts += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts


def asked(**options: object) -> bytes:
    """A request's body."""
    return json.dumps(options).encode()


def test_a_long_load_is_described_rank_by_rank_and_logged(served: Served) -> None:
    """Percent, bytes and the file each rank reads, over both surfaces; no rank reads all files."""
    for rank, texts in served.loading.items():
        for text in texts:
            percent, _, rest = text.partition(" % ")
            assert 0 <= int(percent) < 100
            assert "MB of weights loaded, now from model-0000" in rest
            assert percent == "0" or f"loading: {percent} % " in served.daemon.log
        assert len({text.rpartition(" ")[2] for text in texts}) == 2, rank
    assert all(rank["progress"] == "" for rank in served.bloom.ranks())


def test_the_documented_handler_answers(served: Served, checkpoint: Path) -> None:
    """Over both surfaces, four together."""
    wanted = whole(checkpoint, PROMPTS)
    Watched(served.grpc, "pippy", checkpoint).pids()
    with ThreadPoolExecutor(4) as crowd:
        for client in (served.grpc, served.rest):
            answers = list(crowd.map(lambda prompt, client=client: client.predict("pippy", prompt.encode()), PROMPTS))
            assert [answer.error for answer in answers] == [None] * 4
            assert [answer.body.decode() for answer in answers] == wanted


def test_our_handler_streams_a_text_from_a_model_in_stages(served: Served, checkpoint: Path) -> None:
    """Nothing but model-config.yaml: each rank reads its stage of the checkpoint; pieces come as they are written."""
    [wanted] = whole(checkpoint, ["to be"])
    for client in (served.grpc, served.rest):
        pieces = list(client.stream("bloom", asked(prompt="to be", stream=True)))
        said = [json.loads(line) for line in b"".join(pieces).splitlines()]
        assert len(said) > 2
        assert (said[-1]["finish_reason"], said[-1]["generated_tokens"]) == ("length", 20)
        assert "to be" + "".join(one["text"] for one in said) == wanted


def test_every_socket_of_the_ranks_is_out_of_reach_of_other_hosts(served: Served) -> None:
    """S19, S22: what gloo and the store listen at is on 127.0.0.1, and no socket has a name in a file system."""
    pids = served.bloom.pids()
    assert served.grpc.predict("bloom", b"to be").error is None
    assert listening(pids)
    assert sockets_within_reach([*pids, served.daemon.pid]) == []


def test_nothing_is_unpickled_in_loading_and_serving(served: Served) -> None:
    """S18. What an object collective sends would be heard."""
    assert served.grpc.predict("bloom", asked(prompt="to be")).error is None
    assert served.bloom.unpickled() == [[], []]
    assert served.grpc.predict("bloom", asked(prompt="to be", objects=True)).error is None
    eventually(lambda: served.bloom.unpickled()[1])


def test_a_client_that_leaves_stops_the_generation_on_every_rank(served: Served) -> None:
    """The rest of its 10,000 tokens is written by nobody; the next request is answered by the same processes."""
    pids, before = served.bloom.pids(), served.bloom.steps()
    stream = served.grpc.stream("bloom", asked(**ENDLESS, stream=True))
    next(stream)
    eventually(lambda: min(served.bloom.steps_since(before)) > 20, within=LOADING)
    stream.close()
    assert served.rest.predict("bloom", b"to be").json()["generated_tokens"] == 20
    assert all(20 < steps < FEW_STEPS for steps in served.bloom.steps_since(before))
    assert served.bloom.pids() == pids


def test_a_deadline_stops_the_generation_on_every_rank(served: Served) -> None:
    """And costs no process."""
    pids, before = served.bloom.pids(), served.bloom.steps()
    error = served.rest.predict("bloom", asked(**ENDLESS), timeout=1.0).error
    assert error is not None
    assert (error.code, error.reason) == (504, "DEADLINE")
    assert served.grpc.predict("bloom", b"to be").json()["generated_tokens"] == 20
    assert all(20 < steps < FEW_STEPS for steps in served.bloom.steps_since(before))
    assert served.bloom.pids() == pids


def test_a_rank_killed_in_the_middle_of_a_text_ends_it_and_another_pair_answers(served: Served) -> None:
    """W01: the stream ends with an error of its own, whoever is first to see the end: daemon or leader."""
    pids = served.bloom.pids()
    stream = served.grpc.stream("bloom", asked(**ENDLESS, stream=True))
    next(stream)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(StreamBroken) as broken:
        list(stream)
    assert broken.value.error.reason == "WORKER_DIED"
    assert served.bloom.pids(other_than=pids)
    assert served.rest.predict("bloom", b"to be").json()["generated_tokens"] == 20
