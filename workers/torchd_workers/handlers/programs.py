"""Models that are programs of their own: ONNX files and what AOTInductor compiled."""

from __future__ import annotations

import os
from typing import Any

import torch


def load_onnx(path: str, device: torch.device) -> Any:
    """An onnxruntime session on the device; the extra `onnx` brings onnxruntime."""
    try:
        import onnxruntime  # optional: only who has such a model needs it
    except ModuleNotFoundError as error:
        name = os.path.basename(path)
        raise RuntimeError(f"{name} needs onnxruntime, which is not installed: pip install 'torchd[onnx]'") from error
    cuda: list[Any] = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if device.type == "cuda" else []
    options = onnxruntime.SessionOptions()
    # The worker's share of the machine, not all of it.
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=[*cuda, "CPUExecutionProvider"])


def is_onnx_session(model: Any) -> bool:
    """Whether a model is an onnxruntime session, which is run and not called."""
    return type(model).__name__ == "InferenceSession" and hasattr(model, "run") and hasattr(model, "get_inputs")


def run_onnx(session: Any, inputs: torch.Tensor | list[Any]) -> Any:
    """The outputs of a session as tensors, one alone as itself; `inputs` are its inputs in order."""
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    names = [declared.name for declared in session.get_inputs()]
    if len(given) != len(names):
        raise ValueError(f"the ONNX model has the inputs {', '.join(names)} and was given {len(given)}")
    arrays = [value.cpu().numpy() if isinstance(value, torch.Tensor) else value for value in given]
    outputs = [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]
    return outputs[0] if len(outputs) == 1 else outputs


def load_compiled(path: str, device: torch.device) -> Any:
    """What AOTInductor compiled: a package (.pt2) or a library (.so)."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the loaders know the kind of device, not its number
    if path.endswith(".pt2"):
        return torch._inductor.aoti_load_package(path)
    return torch._export.aot_load(path, device.type)
