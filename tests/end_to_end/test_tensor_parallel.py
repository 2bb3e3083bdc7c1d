"""A model split over two ranks, and the documentation's DeepSpeed handler, through a daemon (G01, G05)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from harness.archives import MODELS
from harness.byte_models import byte_tokenizer, llama, save
from harness.daemon import Daemon
from harness.eventually import eventually
from harness.surfaces import SURFACES

from torchd_archiver.packing import PackRequest, pack

SETTINGS: dict[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "deviceType": "cpu",
    "parallelType": "tp",
    "torchrun": {"nproc-per-node": 2},
}


def whole(prompt: str, count: int) -> str:
    """What the model in one piece says after the prompt."""
    tokens = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
    made = llama().generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False)
    text: str = byte_tokenizer().decode(made[0, tokens.shape[1] :], skip_special_tokens=True)
    return text


def packed(folder: Path, handler: Path | str, config: Path) -> Path:
    """The store with an archive of the handler and a small decoder."""
    store = folder / "store"
    store.mkdir()
    checkpoint = save(llama(), folder / "checkpoint")
    (checkpoint / "ds-config.json").write_bytes((MODELS / "seed_deepspeed" / "ds-config.json").read_bytes())
    pack(
        PackRequest("llama", "1.0", str(handler), extra_files=(str(checkpoint),), config_file=config, export_path=store)
    )
    return store


def rank(daemon: Daemon, number: int) -> int:
    """The process of a rank of the only worker, once there is one."""

    def found() -> int:
        for process in psutil.process_iter(["environ"]):
            told = process.info["environ"] or {}
            if told.get("RANK") == str(number) and told.get("TMPDIR") == str(daemon.scratch):
                return process.pid
        return 0

    return eventually(found)


@pytest.mark.timeout(240)
def test_a_split_model_streams_is_cancelled_and_comes_back_after_a_rank_died(tmp_path: Path) -> None:
    """Nothing but model-config.yaml; over both surfaces the text of the whole model, in pieces."""
    config = tmp_path / "model-config.yaml"
    config.write_text(json.dumps({**SETTINGS, "handler": {"model_path": ".", "max_new_tokens": 20}}))  # JSON is YAML
    store = packed(tmp_path, "parallel_handler", config)
    wanted = whole("to be", 20)
    ask = json.dumps({"prompt": "to be", "stream": True}).encode()
    with Daemon(tmp_path, store=store, models=("llama=llama.mar",), command="torchserve") as daemon:
        with SURFACES["grpc"](daemon) as grpc, SURFACES["rest"](daemon) as rest:
            eventually(lambda: grpc.predict("llama", b"to be").error is None, within=60)
            for client in (grpc, rest):
                said = [json.loads(line) for line in b"".join(client.stream("llama", ask)).splitlines()]
                assert "".join(line["text"] for line in said) == wanted
                assert len(said) > 2
                answer = json.loads(client.predict("llama", b"to be").body)
                assert answer["generated_text"] == wanted

            stream = grpc.stream("llama", json.dumps({"prompt": "x", "stream": True, "max_new_tokens": 500}).encode())
            next(stream)
            stream.close()
            assert json.loads(rest.predict("llama", b"to be").body)["generated_text"] == wanted

            victim = rank(daemon, 1)
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: not psutil.pid_exists(victim))
            assert eventually(lambda: rank(daemon, 1), within=60) != victim
            assert eventually(lambda: rest.predict("llama", b"to be").error is None, within=60)


@pytest.mark.timeout(240)
def test_the_documented_deepspeed_handler_answers(tmp_path: Path) -> None:
    """As the page on large models has it: handler, model-config.yaml, ds-config.json, the checkpoint beside them."""
    seed = MODELS / "seed_deepspeed"
    store = packed(tmp_path, seed / "deepspeed_handler.py", seed / "model-config.yaml")
    with Daemon(tmp_path, store=store, models=("llama=llama.mar",), command="torchserve") as daemon:
        with SURFACES["rest"](daemon) as rest:
            eventually(lambda: rest.predict("llama", b"to be").error is None, within=60)
            answer = rest.predict("llama", b"to be")
            assert (answer.error, answer.body.decode()) == (None, "to be" + whole("to be", 12))
