"""`tensor_program.py ASKED_JSON`: one of two ranks, on which models are split by tensor parallelism.

It is asked with folders of checkpoints ("decoder", "classifier", "encoder" if there is one), and with the rows and
prompts they are served for. Each part runs on both ranks; what they saw is printed as one JSON object.
"""

from __future__ import annotations

import unpickled  # first: it hears what the others do

# isort: split
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from harness import byte_models
from harness.ranks import tell

from torchd_workers import loader
from torchd_workers.context import Context
from torchd_workers.handlers.parallel.generation import LeaderFailed, Text, write
from torchd_workers.handlers.parallel.handler import ParallelHandler
from torchd_workers.handlers.parallel.models import Alike
from torchd_workers.handlers.parallel.plans import CannotSplit
from torchd_workers.handlers.parallel.ranks import Ranks, join_ranks, leave_ranks
from torchd_workers.handlers.parallel.sampling import Sampling
from torchd_workers.handlers.parallel.tensor_parallel import settle, split

DEEPSPEED = Path(__file__).parents[2] / "models" / "seed_deepspeed"
SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def models(encoder: str) -> dict[str, Any]:
    """One of each kind that is split in a way of its own."""
    gemma = transformers.Gemma2Config(**SMALL, **ENDS, num_key_value_heads=2, head_dim=8)
    distilbert = transformers.DistilBertConfig(vocab_size=96, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
    found = {
        "llama": byte_models.llama(),
        "tied llama": byte_models.llama(tied=True),
        "llama of an odd vocabulary": byte_models.llama(vocabulary=261),
        "qwen2": byte_models.qwen2(),
        "scaled embeddings": transformers.Gemma2ForCausalLM(gemma),
        "fused projections": transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, **ENDS)),
        "bert": byte_models.bert_classifier(),
        "roberta": transformers.RobertaModel(transformers.RobertaConfig(**SMALL)),
        "distilbert": transformers.DistilBertModel(distilbert),
    }
    return found | ({"the sentence model": transformers.AutoModel.from_pretrained(encoder)} if encoder else {})


def compare(model: Any, ranks: Ranks) -> dict[str, float]:
    """How far a split model's output is from the whole one's, and how much of it the rank keeps."""
    model.eval()
    torch.manual_seed(1)
    tokens = {"input_ids": torch.randint(3, 90, (2, 7)), "attention_mask": torch.tensor([[0, 0] + [1] * 5, [1] * 7])}
    with torch.inference_mode():
        whole = model(**tokens)[0]
        size = sum(parameter.numel() for parameter in model.parameters())
        split(model, ranks)
        settle(model)
        distance = float((model(**tokens)[0] - whole)[1].abs().max() / whole[1].abs().max())
    return {"distance": distance, "kept": sum(parameter.numel() for parameter in model.parameters()) / size}


def refused(model: Any, ranks: Ranks) -> dict[str, Any]:
    """Why a model cannot be split, and whether it is as it was."""
    before = {key: tuple(value.shape) for key, value in model.named_parameters()}
    said = ""
    try:
        split(model, ranks)
    except CannotSplit as error:
        said = str(error)
    return {"said": said, "unchanged": before == {key: tuple(one.shape) for key, one in model.named_parameters()}}


def write_texts(ranks: Ranks) -> dict[str, Any]:
    """Texts written together; the leader alone knows of cancels, deadlines and failures."""
    model = byte_models.llama()
    split(model, ranks)
    settle(model)
    running = Alike(model, ranks)

    def texts_of(*samplings: Sampling) -> list[Text]:
        return [Text(list(range(65, 70 + 3 * row)), sampling) for row, sampling in enumerate(samplings)]

    def written(
        texts: list[Text],
        is_over: Callable[[int], bool] = lambda row: False,
        on_token: Callable[[int, int], object] = lambda row, token: None,
    ) -> list[Any]:
        with running.reading() as next_tokens:
            write(texts, next_tokens, ranks, ends={257}, pad=256, is_over=is_over, on_token=on_token)
        return [[text.tokens, text.why] for text in texts]

    greedy = Sampling(max_new_tokens=10)
    seeded = Sampling(max_new_tokens=6, temperature=1.0, top_k=20, top_p=0.9, seed=7)
    told: dict[str, Any] = {"mixed": written(texts_of(greedy, seeded, greedy))}
    told["seeded again"] = written(texts_of(greedy, seeded))[1]

    seen: list[int] = []
    told["cancelled"] = written(
        texts_of(greedy, greedy), lambda row: row == 0 and len(seen) >= 6, lambda row, token: seen.append(row)
    )
    steps: list[int] = []
    told["all cancelled"] = written(
        texts_of(Sampling(max_new_tokens=400)), lambda row: len(steps) >= 3, lambda row, token: steps.append(token)
    )

    def broken(row: int, token: int) -> None:
        raise OSError("nobody listens")

    try:
        written(texts_of(greedy), on_token=broken)
    except LeaderFailed as error:
        told["failed"] = [str(error), repr(error.__cause__)]
    told["after"] = written(texts_of(greedy))
    return told


def serve(folder: str, rows: list[Any], **options: Any) -> dict[str, Any]:
    """ParallelHandler's answers and chunks for a checkpoint."""
    settings = {"parallelType": "tp", "handler": {"model_path": folder, **options}}
    context = Context("tiny", folder, None, len(rows), None, model_yaml_config=settings)
    chunks: list[tuple[int, str]] = []
    context.send_chunk = lambda context, row, value: chunks.append((row, value))
    handler = ParallelHandler()
    handler.initialize(context)
    return {"answers": handler.handle([{"body": row} for row in rows], context), "chunks": chunks}


def run_deepspeed(folder: str, texts: list[str]) -> dict[str, Any]:
    """The documentation's DeepSpeed handler."""
    sys.path.insert(0, loader.SHIM)
    spec = importlib.util.spec_from_file_location("deepspeed_handler", DEEPSPEED / "deepspeed_handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = yaml.safe_load((DEEPSPEED / "model-config.yaml").read_text())
    handler = module.ModelHandler()
    context = Context("bloom", folder, None, len(texts), None, model_yaml_config=settings)
    handler.initialize(context)
    answers = handler.handle([{"body": text.encode()} for text in texts], context)
    attention = handler.model.model.layers[0].self_attn
    return {
        "answers": answers,
        "layer": type(attention.o_proj).__name__,
        "rows": attention.q_proj.weight.shape[0],
    }


def main(asked: dict[str, Any]) -> None:
    logging.basicConfig(stream=sys.stderr)
    torch.set_num_threads(1)
    unpickled.listen()
    ranks = join_ranks()
    gpt2 = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4)
    told: dict[str, Any] = {
        "again": join_ranks() == ranks,
        "rank": ranks.rank,
        "compared": {name: compare(model, ranks) for name, model in models(asked["encoder"]).items()},
        "refused": {
            "no plan": refused(transformers.GPT2LMHeadModel(gpt2), ranks),
            "odd heads": refused(byte_models.bert_classifier(heads=3), ranks),
            "odd key-value heads": refused(byte_models.llama(heads=4, key_value_heads=1), ranks),
        },
        "written": write_texts(ranks),
        "decoder": serve(asked["decoder"], asked["rows"]),
        "classifier": {mode: serve(asked["classifier"], asked["texts"], mode=mode) for mode in asked["modes"]},
        "deepspeed": run_deepspeed(asked["decoder"], asked["texts"]),
        "unpickled": list(unpickled.HEARD),
    }
    told["hears"] = unpickled.hears_object_collectives(ranks.is_leader)
    leave_ranks()
    leave_ranks()
    # On a line of its own: DeepSpeed prints to stdout, too.
    tell("\n" + json.dumps(told))


main(json.loads(sys.argv[1]))
