"""The `pt2` entry of model-config.yaml: whether and how a model is compiled. Imports no torch."""

from __future__ import annotations

from typing import Any

PT2_BACKENDS = (
    "eager",
    "aot_eager",
    "inductor",
    "nvfuser",
    "aot_nvfuser",
    "aot_cudagraphs",
    "ofi",
    "fx2trt",
    "onnxrt",
    "ipex",
    "torchxla_trace_once",
    "openvino",
    "tensorrt",
    "hpu_backend",
)


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether `backend` is one TorchServe lets a configuration name."""
    return backend in PT2_BACKENDS


def compile_arguments(pt2: Any) -> dict[str, Any] | None:
    """Arguments for torch.compile from "backend", {compile: {enable, ...}} or the arguments themselves; None is off."""
    if not pt2:
        return None
    if isinstance(pt2, str):
        return {"backend": pt2}
    if not isinstance(pt2, dict):
        raise ValueError(f"model-config.yaml has pt2: {pt2!r}; it must be a backend's name or a mapping")
    if "export" in pt2:
        raise NotImplementedError("model-config.yaml asks for pt2.export, which torchd does not load; use pt2.compile")
    if "compile" not in pt2:
        return dict(pt2)
    arguments = dict(pt2["compile"] or {})
    return arguments if arguments.pop("enable", False) else None
