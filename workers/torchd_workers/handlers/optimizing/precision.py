"""A model that computes in another type than its weights were saved in, and whose callers do not notice.

They give and get float32. `weights` makes every weight narrow, and what goes in at the model's door; `autocast` leaves
weights wide and lets torch choose for each operation; `layers` makes those layers narrow whose products take the time
and leaves embeddings, normalisation, softmax and sums in float32: as fast, and several times closer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)
# Linear layers of another name, by those who wrote them (transformers' GPT-2).
_LAYERS_BY_NAME = ("Conv1D",)
# They read the weights of their parts past the parts' own doors, so each goes narrow as a whole.
_UNITS = (
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
    torch.nn.RNNBase,
)
_MARK = "_torchd_dtype"


class NoSuchPrecision(ValueError):
    """The model cannot be run in this type; the message says why and what would do."""


def in_dtype(model: Any, name: str, device: torch.device, cast: str = "weights") -> Any:
    """The model, computing in this type. A second time it stays as it is."""
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise NoSuchPrecision(
            f"optimize.dtype is {name}, but this model is a program with types of its own ({type(model).__name__}): "
            "export it in that type, or serve its weights with --model-file"
        )
    if vars(model).get(_MARK) == name:
        return model
    dtype: torch.dtype = getattr(torch, name)
    if dtype is torch.float32 or cast == "weights":
        model = model.to(dtype=dtype)
        if dtype is not torch.float32:
            _set_forward(model, _narrow_door(model.forward, dtype))
    elif cast == "autocast":
        _set_forward(model, _autocast(model.forward, dtype, device.type))
    else:
        _narrow_layers(model, dtype)
    vars(model)[_MARK] = name
    return model


def cast_for(device: torch.device) -> str:
    """How a model gets to its type where nobody says: a GPU wants every byte half, a CPU has the room to be exact."""
    return "layers" if device.type == "cpu" else "weights"


def narrow_share(model: torch.nn.Module, name: str) -> float:
    """The share of the weights that are of this type."""
    dtype = getattr(torch, name)
    counts = [(weight.numel(), weight.dtype is dtype) for weight in model.parameters() if weight.is_floating_point()]
    return sum(count for count, narrow in counts if narrow) / (sum(count for count, _ in counts) or 1)


def _narrow_layers(model: torch.nn.Module, dtype: torch.dtype) -> None:
    found = list(_layers(model))
    if not found:
        raise NoSuchPrecision(
            f"optimize.cast is layers, but {type(model).__name__} has no linear layer, convolution or attention of "
            "torch.nn: cast weights makes all of it narrow"
        )
    for layer in found:
        if isinstance(layer, _UNITS):
            layer.to(dtype=dtype)
        else:
            # New parameters: another layer that shares a weight, such as an embedding, keeps its own.
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
        _set_forward(layer, _narrow_door(layer.forward, dtype, is_deep=isinstance(layer, torch.nn.RNNBase)))


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The outermost layers that go narrow as a whole, each once. Subclasses may do otherwise than we know."""
    if isinstance(module, _UNITS) or type(module) in _LAYERS or type(module).__name__ in _LAYERS_BY_NAME:
        # A weight that is computed (parametrizations, weight_norm) is nobody's to replace.
        if isinstance(module, _UNITS) or "weight" in module._parameters:
            yield module
        return
    for child in dict.fromkeys(module.children()):
        yield from _layers(child)


def _set_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    # Hooks would do as well, and make every call of every layer slower.
    module.forward = forward


def _narrow_door(forward: Callable[..., Any], dtype: torch.dtype, is_deep: bool = False) -> Callable[..., Any]:
    @wraps(forward)  # transformers reads the signature
    def narrow(*args: Any, **kwargs: Any) -> Any:
        inputs = [_inner(value, dtype) for value in args]
        output = forward(*inputs, **{name: _inner(value, dtype) for name, value in kwargs.items()})
        if is_deep:  # the state of an LSTM is a pair of its own
            output = tuple(_wide(value, dtype) for value in output)
        return _wide(output, dtype)

    return narrow


def _autocast(forward: Callable[..., Any], dtype: torch.dtype, device_type: str) -> Callable[..., Any]:
    @wraps(forward)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype):
            return _wide(forward(*args, **kwargs), dtype)

    return narrow


def _inner(value: Any, dtype: torch.dtype) -> Any:
    """An argument as the model takes it: tensors alone, and in tuples, such as the state of an LSTM."""
    if type(value) is tuple:
        return tuple(_cast(each, dtype) for each in value)
    return _cast(value, dtype)


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
