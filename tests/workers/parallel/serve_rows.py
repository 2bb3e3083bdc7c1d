"""`serve_rows.py FOLDER KIND ROWS_JSON [OPTIONS_JSON]`: ParallelHandler on this rank; prints its answers."""

import json
import os
import sys
from pathlib import Path

import torch
from harness.ranks import tell

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.handler import ParallelHandler

folder, kind, rows, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads((sys.argv[4:] or ["{}"])[0])
torch.set_num_threads(1)
context = Context(
    "tiny",
    str(Path(folder)),
    None,
    len(rows),
    None,
    model_yaml_config={"parallelType": kind, "handler": {"model_path": folder, **options}},
)
chunks: list[tuple[int, str]] = []
context.send_chunk = lambda context, row, value: chunks.append((row, value))
handler = ParallelHandler()
handler.initialize(context)
answers = handler.handle([{"body": row} for row in rows], context)
tell(json.dumps({"answers": answers, "chunks": chunks, "rank": os.environ.get("RANK")}))
