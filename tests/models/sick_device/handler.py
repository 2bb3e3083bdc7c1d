"""Raises what torch raises when memory or a device fails; `handler.failing_loads` are loads that fail, from 0."""

import os

import torch

CUDA_OUT_OF_MEMORY, CUDA_ASSERT = 2, 710


def accelerator_error(text, code):
    """As torch makes it: the driver's number is set on the object."""
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


def fail(error):
    raise error


class Cuda:
    """A driver that is not there: `lost` is what it answers from now on."""

    def __init__(self):
        self.lost = False
        self.freed = 0
        torch.cuda.is_initialized = lambda: True
        torch.cuda.synchronize = self.synchronize
        torch.cuda.empty_cache = self.empty_cache

    def synchronize(self):
        if self.lost:
            raise accelerator_error("CUDA error: device-side assert triggered", CUDA_ASSERT)

    def empty_cache(self):
        self.freed += 1


class SickDeviceHandler:
    """Does what the first request says; anything else is echoed with the process's number."""

    cuda = None

    def initialize(self, context):
        settings = context.model_yaml_config.get("handler", {})
        if "failing_loads" in settings and _load_number(settings["counter"]) in settings["failing_loads"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.acts = {
            "device memory": lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
            "driver memory": lambda: fail(accelerator_error("CUDA error: out of memory", CUDA_OUT_OF_MEMORY)),
            "host memory": lambda: torch.empty(1 << 50),
            "python memory": lambda: fail(MemoryError()),
            "assert": lambda: fail(accelerator_error("CUDA error: device-side assert triggered", CUDA_ASSERT)),
            "driver": lambda: setattr(self, "cuda", Cuda()),
            "lose": lambda: setattr(self.cuda, "lost", True),
            "library": lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")),
            "freed": lambda: str(self.cuda.freed),
        }

    def handle(self, data, context):
        bodies = [bytes(row.get("data") or row["body"]).decode() for row in data]
        answer = self.acts[bodies[0]]() if bodies[0] in self.acts else None
        return [answer or str(os.getpid())] * len(bodies)


def _load_number(counter):
    """How many loads were before this one, of all processes."""
    for number in range(1000):
        try:
            os.close(os.open(f"{counter}.{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return number
    raise RuntimeError("too many loads")
