"""A function handler that sleeps as many seconds as each request says, and counts the requests it has seen."""

import json
import time

seen = 0


def handle(data, context):
    """TorchServe calls it once with None to load the model."""
    global seen
    if data is None:
        return None
    for row in data:
        time.sleep(json.loads(bytes(row["body"])))
    seen += len(data)
    return [json.dumps(seen) for _ in data]
