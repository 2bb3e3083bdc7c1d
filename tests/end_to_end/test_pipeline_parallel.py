"""Models in stages through a daemon: the documentation's PiPPy handler, our own, a rank that dies (field.md row 40)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from faults.arena import worker_pids
from harness.archives import MODELS
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import SURFACES

from torchd_archiver.packing import PackRequest, pack

PROMPTS = ["to be", "or not to be, that is", "the question", "whether"]
# Two ranks load torch and transformers, on a machine with other things to do.
LOADING = 90.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder with random weights; its tokens are bytes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(5)
    config = transformers.BloomConfig(
        vocab_size=384, hidden_size=32, n_layer=4, n_head=4, pad_token_id=0, eos_token_id=1, initializer_range=0.3
    )
    transformers.BloomForCausalLM(config).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return folder


def whole(checkpoint: Path, prompts: Sequence[str]) -> list[str]:
    """What the model in one piece makes of each prompt, with twenty tokens more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = []
    for prompt in prompts:
        said = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=20, do_sample=False)
        texts += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts


def packed(folder: Path, checkpoint: Path, handler: Path | str, config: Path, archive_format: str = "default") -> Path:
    """An archive made as the documentation says: --extra-files with the checkpoint, --config-file."""
    store = folder / "store"
    store.mkdir()
    pack(
        PackRequest(
            "bloom",
            "1.0",
            str(handler),
            extra_files=(str(checkpoint),),
            config_file=config,
            export_path=store,
            archive_format=archive_format,
        )
    )
    [archive] = store.iterdir()
    return archive


def rank(daemon: Daemon, number: int) -> int:
    """The process of a rank of the only worker, once there is one."""

    def found() -> int:
        for process in psutil.process_iter(["environ"]):
            told = process.info["environ"] or {}
            if told.get("RANK") == str(number) and told.get("TMPDIR") == str(daemon.scratch):
                return process.pid
        return 0

    return eventually(found)


@pytest.fixture
def served(tmp_path: Path, checkpoint: Path) -> Iterator[Daemon]:
    """A daemon with the documentation's handler and model-config.yaml, two ranks on the CPU."""
    seed = MODELS / "seed_pippy"
    archive = packed(tmp_path, checkpoint, seed / "pippy_handler.py", seed / "model-config.yaml", "tgz")
    with Daemon(tmp_path, store=archive.parent, models=(f"bloom={archive.name}",), command="torchserve") as daemon:
        yield daemon


@pytest.mark.timeout(240)
def test_the_documented_handler_answers_and_comes_back_after_a_rank_died(served: Daemon, checkpoint: Path) -> None:
    """Over both surfaces, four together; then rank 1 is killed, and another worker answers."""
    wanted = whole(checkpoint, PROMPTS)
    with SURFACES["grpc"](served) as grpc, SURFACES["rest"](served) as rest, ThreadPoolExecutor(4) as crowd:
        eventually(lambda: worker_pids(grpc, "bloom"), within=LOADING)
        for client in (grpc, rest):
            answers = list(crowd.map(lambda prompt, client=client: client.predict("bloom", prompt.encode()), PROMPTS))
            assert [answer.error for answer in answers] == [None] * 4
            assert [answer.body.decode() for answer in answers] == wanted

        victim = rank(served, 1)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(victim))
        assert eventually(lambda: rank(served, 1)) != victim
        eventually(lambda: worker_pids(grpc, "bloom"), within=LOADING)
        assert rest.predict("bloom", PROMPTS[0].encode()).body.decode() == wanted[0]


@pytest.mark.timeout(240)
def test_our_handler_streams_a_text_from_a_model_in_stages(tmp_path: Path, checkpoint: Path) -> None:
    """Nothing but model-config.yaml: each rank reads its stage of the checkpoint; pieces come as they are written."""
    config = tmp_path / "model-config.yaml"
    settings: dict[str, Any] = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "parallelType": "pp",
        "torchrun": {"nproc-per-node": 2},
        "handler": {"model_path": ".", "max_new_tokens": 20},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    archive = packed(tmp_path, checkpoint, "parallel_handler", config)
    [wanted] = whole(checkpoint, ["to be"])
    with Daemon(tmp_path, store=archive.parent, models=(f"bloom={archive.name}",)) as daemon:
        with SURFACES["grpc"](daemon) as client:
            eventually(lambda: worker_pids(client, "bloom"), within=LOADING)
            pieces = list(client.stream("bloom", json.dumps({"prompt": "to be", "stream": True}).encode()))
            said = [json.loads(line) for line in b"".join(pieces).splitlines()]
            assert len(pieces) > 2
            assert said[-1]["finish_reason"] == "length"
            assert said[-1]["generated_tokens"] == 20
            assert "to be" + "".join(one["text"] for one in said) == wanted
