"""Loads a checkpoint in one of several ways, for tests/workers/test_checkpoint_memory.py, which watches from outside.

load_checkpoint.py FOLDER WAY: says "ready" once everything is imported and built, loads when a line comes, and prints
what it kept, in bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from torchd_workers.handlers.parallel.checkpoints import Checkpoint, fill, keeps_prefixes, slice_of_rank

LAYERS, ROWS, COLUMNS = 12, 2048, 3072


def main(folder: Path, way: str) -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(COLUMNS, ROWS) for _ in range(LAYERS)))
    print("ready", flush=True)
    sys.stdin.readline()
    kept = WAYS[way](model, folder)
    print(kept, flush=True)


def mapped(model: torch.nn.Module, folder: Path) -> int:
    """Everything, as views of the files: nothing is kept in memory of one's own."""
    with Checkpoint(folder) as checkpoint:
        fill(model, checkpoint)
    assert sum(float(weight.sum()) for weight in model.parameters()) > 0  # touches every page
    return 0


def copied(model: torch.nn.Module, folder: Path) -> int:
    with Checkpoint(folder) as checkpoint:
        return fill(model, checkpoint, mapped=False).bytes_kept


def stage(model: torch.nn.Module, folder: Path) -> int:
    with Checkpoint(folder) as checkpoint:
        return fill(model, checkpoint, mapped=False, keep=keeps_prefixes("10", "11")).bytes_kept


def rank(model: torch.nn.Module, folder: Path) -> int:
    """A fourth of every weight, cut across its rows, which has to be gathered."""

    def cut(name: str, shape: torch.Size) -> tuple[slice, ...]:
        return slice_of_rank(shape, len(shape) - 1, rank=1, ranks=4)

    with Checkpoint(folder) as checkpoint:
        return fill(model, checkpoint, shard=cut).bytes_kept


def cast(model: torch.nn.Module, folder: Path) -> int:
    with Checkpoint(folder) as checkpoint:
        return fill(model, checkpoint, dtype=torch.bfloat16).bytes_kept // 2


def naive(model: torch.nn.Module, folder: Path) -> int:
    """What loading without any of this does: all tensors of all files, to keep two layers of them."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    read = [load_file(file) if file.suffix == ".safetensors" else torch.load(file) for file in files]
    weights = {name: value.clone() for tensors in read for name, value in tensors.items()}
    return sum(value.nbytes for name, value in weights.items() if name.startswith(("10.", "11.")))


WAYS = {"mapped": mapped, "copied": copied, "stage": stage, "rank": rank, "cast": cast, "naive": naive}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
