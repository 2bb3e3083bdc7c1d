#!/usr/bin/env python3
"""Traces a classifier of sentence pairs at fixed shapes and writes what an archive of it needs.

Each batch size with each maximum length makes one program; the handler takes the smallest that fits. Beside them it
writes config.json, which says their shapes, model-config.yaml, which says how they are served, the tokenizer and the
handler, and prints the command that packs it all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

if __name__ == "__main__":  # as a script, it has only its own folder on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.paraphrase.pack import ModelMissing
from demo.paraphrase.pairs import demo_pairs

from neuron import backend
from neuron.pair_model import INPUTS, PairModel, load
from torchd_archiver import cli as archiver
from torchd_workers.handlers.optional_libraries import LibraryMissing

HANDLER = Path(__file__).with_name("handler_bert_neuronx.py")
# Queued at once by benchmark_bert.py: 64 threads with a batch each.
QUEUE = 1000
TOLERANCE = 1e-3


class TraceDiffers(RuntimeError):
    """A program does not give what the model gives."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Traces, writes, and packs or prints how to pack; 1 where something is missing or a program differs."""
    options = _parser().parse_args(arguments)
    try:
        trace = _trace(options)
        model = load(options.model)
        run(model, trace, options)
    except (LibraryMissing, ModelMissing, TraceDiffers) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(model: PairModel, trace: backend.Trace, options: argparse.Namespace) -> None:
    """Everything after the model is loaded, in order."""
    batch_sizes = sorted(set(options.batch_size or [6]), reverse=True)
    lengths = sorted(set(options.max_length or [128]), reverse=True)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    buckets = []
    for batch_size, length in product(batch_sizes, lengths):
        suffix = "" if length == lengths[0] else f"_l{length}"
        file = f"bert_neuron_b{batch_size}{suffix}.pt"
        program = trace(model.network, _example(model, batch_size, length))
        program.save(str(output / file))
        if options.backend == "cpu":  # a program for NeuronCores runs nowhere else
            _check(model, program, batch_size, length)
        buckets.append({"file": file, "batch_size": batch_size, "max_length": length})
        print(f"{output / file}: batches of {batch_size}, {length} tokens")
    _write_config(model, buckets, options)
    _write_model_config(batch_sizes[0], options)
    model.tokenizer.save_pretrained(str(output / "tokenizer"))
    shutil.copyfile(HANDLER, output / HANDLER.name)
    name = f"bert-max_length{lengths[0]}-batch_size{batch_sizes[0]}"
    _pack(name, [str(bucket["file"]) for bucket in buckets], options)


def _trace(options: argparse.Namespace) -> backend.Trace:
    if options.backend == "cpu":
        return backend.cpu()
    return backend.neuron(options.compiler_args, options.compiler_workdir, options.target)


def _example(model: PairModel, batch_size: int, length: int) -> tuple[torch.Tensor, ...]:
    """A batch at the shapes to be traced; what is in it does not matter."""
    pairs = [(pair.seq_0, pair.seq_1) for pair in demo_pairs()]
    return model.encoded([pairs[row % len(pairs)] for row in range(batch_size)], length)


def _check(model: PairModel, program: Any, batch_size: int, length: int) -> None:
    """Compares a program with its model on other data than it was traced with."""
    pairs = [(pair.seq_1, pair.seq_0) for pair in reversed(demo_pairs())]
    inputs = model.encoded([pairs[row % len(pairs)] for row in range(batch_size)], length)
    # Once is too seldom for TorchScript to make the program faster: that is for the worker to wait for.
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        expected, found = model.network(*inputs)[0], program(*inputs)[0]
    if not torch.allclose(expected, found, atol=TOLERANCE):
        raise TraceDiffers(
            f"the program for batches of {batch_size}, {length} tokens, does not give the model's results"
        )


def _write_config(model: PairModel, buckets: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """config.json: the keys of Neuron's own example, for the largest program, and ours."""
    padding = {"input_ids": model.tokenizer.pad_token_id or 0}
    config = {
        "model_name": model.source,
        "max_length": buckets[0]["max_length"],
        "batch_size": buckets[0]["batch_size"],
        "backend": options.backend,
        "classes": list(model.classes),
        "inputs": [{"name": name, "dtype": "int64", "padding": padding.get(name, 0)} for name in INPUTS],
        "buckets": buckets,
    }
    (options.output / "config.json").write_text(json.dumps(config, indent=4) + "\n")


def _write_model_config(batch_size: int, options: argparse.Namespace) -> None:
    """model-config.yaml: full batches, and the device that the programs are for."""
    settings = {"compiledBatchSize": batch_size, "jobQueueSize": QUEUE, "deviceType": options.backend}
    (options.output / "model-config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def _pack(name: str, files: list[str], options: argparse.Namespace) -> None:
    """Packs the archive into the folder that --export-path names, or prints the command that does."""
    here = str(options.output)
    extra = [f"{here}/{name}" for name in ("config.json", "tokenizer", *files[1:])]
    words = [
        *("--model-name", name, "--version", "1.0"),
        *("--serialized-file", f"{here}/{files[0]}", "--handler", f"{here}/{HANDLER.name}"),
        *("--extra-files", ",".join(extra), "--config-file", f"{here}/model-config.yaml"),
        *("--archive-format", "zip-store"),  # weights do not compress
    ]
    if options.export_path is None:
        print("To pack it:")
        print(f"  mkdir -p model_store && torch-model-archiver {shlex.join(words)} --export-path model_store")
        return
    options.export_path.mkdir(parents=True, exist_ok=True)
    code = archiver.main([*words, "--force", "--export-path", str(options.export_path)])
    if code != 0:
        raise SystemExit(code)  # the archiver has said why


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trace_bert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backend", choices=("neuron", "cpu"), default="neuron", help="what traces it (%(default)s)")
    add("--batch-size", type=int, action="append", metavar="N", help="rows of a program; may be repeated (6)")
    add("--max-length", type=int, action="append", metavar="N", help="tokens of a program; may be repeated (128)")
    add(
        "--model",
        default="",
        metavar="FOLDER",
        help="a BERT classifier of pairs (the sentence model of the quickstart)",
    )
    add("--output", type=Path, default=Path("."), metavar="FOLDER", help="where to write (%(default)s)")
    add("--export-path", type=Path, metavar="FOLDER", help="pack the archive into this folder, too")
    neuron = parser.add_argument_group("for --backend neuron")
    neuron.add_argument("--target", default="", metavar="NAME", help="compile for inf2, trn1, ... on a machine without")
    neuron.add_argument("--compiler-args", nargs="*", default=[], metavar="WORD", help="options of neuronx-cc")
    neuron.add_argument("--compiler-workdir", metavar="FOLDER", help="where neuronx-cc leaves its intermediate files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
