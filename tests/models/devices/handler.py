"""Answers which devices its process sees: the variables it was started with, its GPU, the cores it may run on."""

import json
import os

SHOWN = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES")
AT_START = {name: os.environ.get(name) for name in SHOWN}


def handle(data, context):
    """The same to every request."""
    if data is None:
        return None
    seen = {
        "pid": os.getpid(),
        "gpu_id": context.system_properties["gpu_id"],
        "affinity": sorted(os.sched_getaffinity(0)),
        **AT_START,
    }
    return [json.dumps(seen) for _ in data]
