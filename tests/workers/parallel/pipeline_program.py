"""A program of several ranks: models run as pipelines beside the same models in one piece; the leader prints what differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from frame_pipe import FramePipe
from tiny_models import DECODERS, decoder

from torchd_workers.handlers.parallel.cutting import pipeline_of
from torchd_workers.handlers.parallel.ranks import join_ranks

UNPICKLED: list[str] = []
sys.addaudithook(lambda event, _: UNPICKLED.append(event) if event == "pickle.find_class" else None)


def main(folder: Path, kinds: list[str], chunks: int) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks()
    group = FramePipe(folder)
    report: dict[str, Any] = {}
    for kind in kinds:
        whole = decoder(kind) if ranks.is_leader else None
        # One pipe for several models: each serves after the one before has gone.
        pipeline = pipeline_of(decoder(kind), ranks, group, chunks)
        if not ranks.is_leader:
            group.follow(until="next")
            continue
        for rows in (1, 2, 3, 4):
            for length in (1, 5, 11):
                ids = torch.randint(1, 97, (rows, length))
                mask = torch.ones_like(ids)
                mask[0, : length // 2] = 0
                with torch.no_grad():
                    wanted = whole(input_ids=ids, attention_mask=mask, use_cache=False).logits
                got = pipeline.step({"input_ids": ids, "attention_mask": mask})["logits"]
                seen = mask.bool()
                report[f"{kind} {rows}x{length}"] = float((wanted - got)[seen].abs().max())
        group.call("next")
    if ranks.is_leader:
        report["unpickled"] = UNPICKLED
        print(json.dumps(report))
        group.close()
    elif UNPICKLED:
        sys.exit(f"rank {ranks.rank} unpickled: {UNPICKLED}")


main(Path(sys.argv[1]), sys.argv[2].split(",") if sys.argv[2] != "all" else list(DECODERS), int(sys.argv[3]))
