"""What an exception says about the device: its memory is full, or it cannot be used again by this process.

Torch is never imported here: where it is not loaded, nothing it raises can have come. Told by type and by the number
that the driver gave. One text is looked at: torch raises a bare RuntimeError where main memory is refused to it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

# https://docs.nvidia.com/cuda/cuda-runtime-api: what the driver answers where torch's own allocator does not stand
# between, as when the context of a worker is made on a GPU that others have filled.
CUDA_ERROR_MEMORY_ALLOCATION = 2
_REFUSED_BY_HOST = "DefaultCPUAllocator: "


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had not enough memory."""
    torch = sys.modules.get("torch")
    homes = (torch, getattr(torch, "cuda", None))
    kinds = [kind for home in homes if isinstance(kind := getattr(home, "OutOfMemoryError", None), type)]
    if isinstance(error, (MemoryError, *kinds)):
        return True
    if _is_accelerator_error(error, torch):
        return vars(error).get("error_code") == CUDA_ERROR_MEMORY_ALLOCATION
    return type(error) is RuntimeError and any(
        isinstance(text, str) and _REFUSED_BY_HOST in text for text in error.args
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether this process can compute on its device no more: a kernel's assertion failed, the device fell off its bus.

    The driver knows: an error that spoils the context is its answer to every later call too, others are forgotten.
    """
    torch = sys.modules.get("torch")
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    synchronize = _synchronize(torch)
    if synchronize is None:  # nobody to ask
        return _is_accelerator_error(error, torch)
    try:
        synchronize()
    except Exception:
        return True
    return False


def free_memory() -> None:
    """Gives back what a call that ran out of memory has left: its objects, and what torch keeps of the device's."""
    gc.collect()
    cuda = _cuda(sys.modules.get("torch"))
    if cuda is not None:
        cuda.empty_cache()


def _is_accelerator_error(error: BaseException, torch: Any) -> bool:
    kind = getattr(torch, "AcceleratorError", None)
    return isinstance(kind, type) and isinstance(error, kind)


def _synchronize(torch: Any) -> Callable[[], object] | None:
    cuda = _cuda(torch)
    return None if cuda is None else cuda.synchronize


def _cuda(torch: Any) -> Any:
    """torch.cuda of a process that has used a GPU, else None."""
    cuda = getattr(torch, "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized and is_initialized() else None
