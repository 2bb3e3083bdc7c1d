"""A model that computes in another type than its weights were saved in, and whose callers do not notice.

They give and get float32: what goes in is made narrower at the model's door, what comes out is made wide again.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


class NoSuchPrecision(ValueError):
    """The model cannot be run in this type; the message says why and what would do."""


def in_dtype(model: Any, name: str, device: torch.device) -> Any:
    """The model, its floating-point weights and its inputs in this type; complex and integer ones stay."""
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise NoSuchPrecision(
            f"optimize.dtype is {name}, but this model is a program with types of its own ({type(model).__name__}): "
            "export it in that type, or serve its weights with --model-file"
        )
    dtype: torch.dtype = getattr(torch, name)
    if dtype is torch.bfloat16 and device.type == "cuda":
        _check_bfloat16(device)
    model = model.to(dtype=dtype)
    if dtype is not torch.float32:
        model.register_forward_pre_hook(lambda _, args, kwargs: _inputs(args, kwargs, dtype), with_kwargs=True)
        model.register_forward_hook(lambda _, args, output: _wide(output, dtype))
    return model


def _check_bfloat16(device: torch.device) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        logger.warning("optimize.dtype is bfloat16, which %s only emulates, slowly; float16 is faster there", name)


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    narrow = tuple(_cast(value, dtype) for value in args)
    return narrow, {name: _cast(value, dtype) for name, value in kwargs.items()}


def _wide(output: Any, dtype: torch.dtype) -> Any:
    """The output's own tensors as float32. What lies deeper, such as a generating model's cache, stays as it is."""
    if isinstance(output, torch.Tensor):
        return _cast(output, torch.float32, only=dtype)
    if isinstance(output, dict):  # transformers' outputs are such
        for name, value in output.items():
            output[name] = _cast(value, torch.float32, only=dtype)
        return output
    if type(output) in (tuple, list):
        return type(output)(_cast(value, torch.float32, only=dtype) for value in output)
    return output


def _cast(value: Any, dtype: torch.dtype, only: torch.dtype | None = None) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.to(dtype) if only in (None, value.dtype) else value
