"""A model of several ranks that needs no torch: each tells its log what it was called with, the leader what it sees."""

import json
import os
import time


def handle(data, context):
    """The row "hold" takes a minute on every rank; `fails_on` in model-config.yaml names a rank that cannot load."""
    rank = int(os.environ["RANK"])
    if data is None:
        if context.model_yaml_config.get("fails_on") == rank:
            load_a_shard_that_is_not_there()
        return None
    rows = [bytes(row.get("body") or row.get("data")).decode() for row in data]
    print(f"rank {rank} was called with {sorted(rows)}", flush=True)
    if "hold" in rows:
        time.sleep(60)
    seen = {
        "pid": os.getpid(),
        "rank": rank,
        "size": context.group.size,
        "gpu": context.system_properties.get("gpu_id"),
        "environment": dict(os.environ),
    }
    return [json.dumps({**seen, "row": row}).encode() for row in rows]


def load_a_shard_that_is_not_there():
    """Has a frame of its own in the traceback."""
    raise RuntimeError("shard 2 of 2 is not there")
