"""The `pt2` entry of model-config.yaml: whether and how a model is compiled. Imports no torch."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

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
    if backend in PT2_BACKENDS:
        return True
    logger.warning("%r is not a supported backend; it may be %s", backend, ", ".join(PT2_BACKENDS))
    return False


def compile_arguments(pt2: Any) -> dict[str, Any] | None:
    """Arguments for torch.compile from "backend", {compile: {enable, ...}} or the arguments themselves; None is off."""
    if not pt2:
        return None
    if isinstance(pt2, str):
        return {"backend": pt2} if check_valid_pt2_backend(pt2) else None
    if not isinstance(pt2, dict):
        raise ValueError(f"model-config.yaml has pt2: {pt2!r}; it must be a backend's name or a mapping")
    if "compile" in pt2:
        arguments = dict(pt2["compile"] or {})
        return arguments if arguments.pop("enable", False) and _is_backend_known(arguments) else None
    # An exported program (pt2: {export: ...}) has been compiled by whoever packed it.
    return dict(pt2) if "export" not in pt2 and _is_backend_known(pt2) else None


def _is_backend_known(arguments: dict[str, Any]) -> bool:
    return "backend" not in arguments or check_valid_pt2_backend(arguments["backend"])
