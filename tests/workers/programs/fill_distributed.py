"""One rank of two: fills a model whose weights are DTensors, and prints what this rank holds and what all answer."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from torchd_workers.handlers.parallel.checkpoints import Checkpoint, empty_model, fill


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = empty_model(folder)
    plan = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, plan)
    with Checkpoint(folder) as checkpoint:
        filled = fill(model, checkpoint)
    mlp = model.model.layers[0].mlp
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, 7, 8]])).logits
    shapes = [list(linear.weight.to_local().shape) for linear in (mlp.up_proj, mlp.down_proj)]
    print(json.dumps({"shapes": shapes, "bytes": filled.bytes_kept, "logits": logits.flatten().tolist()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
