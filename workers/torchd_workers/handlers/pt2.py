"""The `pt2` entry of model-config.yaml: whether and how a model is compiled. Imports no torch."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

logger = logging.getLogger(__name__)


class PT2Backend(StrEnum):
    """The backends of torch.compile that TorchServe lets a configuration name."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether `backend` is one TorchServe lets a configuration name."""
    if backend in set(PT2Backend):
        return True
    logger.warning("%r is not a supported backend; it may be %s", backend, ", ".join(PT2Backend))
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
