"""What each option of `optimize` does to a model. A step says how it was done, or raises why it was not."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import wraps
from types import ModuleType
from typing import Any

import torch

from torchd_workers.handlers.optimizing.precision import cast_for, in_dtype, narrow_share
from torchd_workers.handlers.optimizing.wish import Compile, Optimize
from torchd_workers.handlers.optional_libraries import library

Warn = Callable[[str], None]
# The instructions that multiply numbers of the type, as /proc/cpuinfo calls them; the last is of ARM.
_INSTRUCTIONS = {"bfloat16": ("amx_bf16", "avx512_bf16", "bf16"), "float16": ("amx_fp16", "asimdhp")}


class NotApplied(Exception):
    """The option does nothing for this model; the message says why. The worker loads all the same."""


class CannotOptimize(ValueError):
    """The option cannot be had for this model; the message says why and what would do."""


def apply(name: str, model: torch.nn.Module, wish: Optimize, device: torch.device, warn: Warn) -> str:
    """Applies one option to the model, in its place."""
    return _STEPS[name](model, wish, device, warn)


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, in the kernel's words; nothing where it does not say."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(flags.split())
    return frozenset()


def _channels_last(model: torch.nn.Module, wish: Optimize, device: torch.device, warn: Warn) -> str:
    count = sum(weight.dim() == 4 for weight in model.parameters())
    if not count:
        raise NotApplied("the model has no weight of four dimensions, such as that of a convolution of images")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = model.forward

    @wraps(forward)
    def channels_last(*args: Any, **kwargs: Any) -> Any:
        return forward(*map(_as_images, args), **{name: _as_images(value) for name, value in kwargs.items()})

    model.forward = channels_last
    return f"{count} weights and the inputs"


def _as_images(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _dtype(model: torch.nn.Module, wish: Optimize, device: torch.device, warn: Warn) -> str:
    name = wish.dtype or "float32"
    cast = wish.cast or cast_for(device)
    _warn_of_slowness(name, device, warn)
    in_dtype(model, name, device, cast)
    if name == "float32":
        return "weights"
    return cast if cast == "autocast" else f"{cast}: {narrow_share(model, name):.0%} of the weights are {name}"


def _warn_of_slowness(name: str, device: torch.device, warn: Warn) -> None:
    if device.type == "cpu" and name in _INSTRUCTIONS:
        flags = cpu_flags()
        if flags and not flags.intersection(_INSTRUCTIONS[name]):
            better = "bfloat16" if flags.intersection(_INSTRUCTIONS["bfloat16"]) else "float32"
            wanted = " or ".join(_INSTRUCTIONS[name])
            warn(f"this CPU ({platform.machine()}) has no {wanted}: {name} is slow here, {better} is faster")
    elif name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        warn(f"{torch.cuda.get_device_name(device)} only emulates bfloat16, slowly; float16 is faster there")


def _quantize(model: torch.nn.Module, wish: Optimize, device: torch.device, warn: Warn) -> str:
    torchao = _torchao()
    configs = {
        "int8_dynamic": torchao.Int8DynamicActivationInt8WeightConfig,
        "int8_weight_only": torchao.Int8WeightOnlyConfig,
    }
    count = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    if not count:
        raise CannotOptimize(f"optimize.quantize is {wish.quantize}, but {type(model).__name__} has no linear layer")
    with torch.no_grad():
        torchao.quantize_(model, configs[wish.quantize or ""]())
    return f"{count} linear layers"


def _torchao() -> ModuleType:
    return library("torchao.quantization", "optimize.quantize", "'torchd[quantize]'")


def _compile(model: torch.nn.Module, wish: Optimize, device: torch.device, warn: Warn) -> str:
    arguments = {name: value for name, value in asdict(wish.compile or Compile()).items() if value is not None}
    model.compile(**arguments)
    return ", ".join(f"{name} {value}" for name, value in arguments.items())


_STEPS: dict[str, Callable[[torch.nn.Module, Optimize, torch.device, Warn], str]] = {
    "channels_last": _channels_last,
    "dtype": _dtype,
    "quantize": _quantize,
    "compile": _compile,
}
