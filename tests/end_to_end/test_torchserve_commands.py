"""The TorchServe tutorial's commands as written, with the real curl: BERT-base, its handler, one and two workers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness.daemon import Daemon

HANDLER = '''
import logging
import os

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)


class BertClassifier(BaseHandler):
    """Loads config.json, vocab.txt and pytorch_model.bin with transformers; answers the likeliest class."""

    def initialize(self, ctx):
        self.manifest = ctx.manifest
        properties = ctx.system_properties
        model_dir = properties.get("model_dir")
        self.device = torch.device("cpu")
        assert os.path.isfile(os.path.join(model_dir, self.manifest["model"]["serializedFile"]))
        self.model = AutoModelForSequenceClassification.from_pretrained(model_dir).to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        logger.info("model loaded from %s", model_dir)
        self.initialized = True

    def preprocess(self, data):
        text = data[0].get("data") or data[0].get("body")
        if isinstance(text, (bytes, bytearray)):
            text = text.decode("utf-8")
        return self.tokenizer(text, return_tensors="pt", truncation=True, max_length=64)

    def inference(self, inputs):
        with torch.no_grad():
            return self.model(**inputs.to(self.device)).logits.argmax(-1).item()

    def postprocess(self, output):
        return [str(output)]
'''
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "company",
    "is",
    "based",
    "in",
    "new",
    "york",
    "city",
    ".",
]


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """The tutorial's folder: BERT-base of random weights, the handler, an input, an empty model store."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    torch.manual_seed(0)
    # BERT-base is what BertConfig() means; only the word list is short.
    config = BertConfig(architectures=["BertForSequenceClassification"])
    torch.save(BertForSequenceClassification(config).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "bert_torch_serve_handler.py").write_text(HANDLER)
    (tmp_path / "input.txt").write_text("The company is based in New York City.\n")
    (tmp_path / "model_store").mkdir()
    return tmp_path


def shell(daemon: Daemon, command: str) -> subprocess.CompletedProcess[str]:
    """Runs one line of the tutorial; its fixed ports become this daemon's."""
    for port, name in (("8080", "inference"), ("8081", "management")):
        if daemon.addresses:
            command = re.sub(rf":{port}\b", f":{daemon.host_and_port(name)[1]}", command)
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=daemon.folder,
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )


@pytest.mark.needs("curl")
@pytest.mark.timeout(400)
def test_the_tutorials_commands_work_as_written(workshop: Path) -> None:
    """Seed 000 with `torchserve` in place of its container."""
    daemon = Daemon(
        workshop,
        command="torchserve",
        store=Path("model_store"),
        arguments=["--disable-token-auth", "--enable-model-api"],
    )
    shell(
        daemon,
        'torch-model-archiver --model-name "bert" --version 1.0'
        " --serialized-file bert-base-uncased/pytorch_model.bin"
        ' --extra-files "bert-base-uncased/config.json, bert-base-uncased/vocab.txt"'
        " --handler bert_torch_serve_handler.py",
    )
    shell(daemon, "mv bert.mar model_store/")
    with daemon:
        made = shell(
            daemon, 'curl -X POST "http://localhost:8081/models?model_name=bert&url=bert.mar&initial_workers=1"'
        )
        assert json.loads(made.stdout) == {"status": 'Model "bert" Version: 1.0 registered with 1 initial workers'}
        assert shell(daemon, "curl -X POST http://127.0.0.1:8080/predictions/bert -T input.txt").stdout in ("0", "1")
        one = shell(
            daemon, 'curl -v -X PUT "http://localhost:8081/models/bert?min_worker=1&max_worker=1&synchronous=true"'
        )
        assert json.loads(one.stdout) == {"status": "Workers scaled to 1 for model: bert"}
        two = shell(
            daemon, 'curl -v -X PUT "http://localhost:8081/models/bert?min_worker=2&max_worker=2&synchronous=true"'
        )
        assert two.stdout == '{\n  "status": "Workers scaled to 2 for model: bert"\n}\n'
        sent = {line[2:].strip().lower() for line in two.stderr.splitlines() if line.startswith("< ")}
        for header in (
            "content-type: application/json",
            "pragma: no-cache",
            "cache-control: no-cache; no-store, must-revalidate, private",
            "expires: thu, 01 jan 1970 00:00:00 utc",
            "content-length: 54",
            "connection: keep-alive",
        ):
            assert header in sent
        assert any(line.startswith("x-request-id: ") for line in sent)
        assert "< HTTP/1.1 200 OK" in two.stderr  # behind curl's progress meter, not on a line of its own
        many = shell(
            daemon,
            "seq 10 | xargs -n 1 -P 2 bash -c"
            " 'url=\"http://127.0.0.1:8080/predictions/bert\"; curl -s -X POST $url -T input.txt'",
        )
        assert len(many.stdout) == 10
        assert set(many.stdout) <= {"0", "1"}
        assert len(set(many.stdout)) == 1
