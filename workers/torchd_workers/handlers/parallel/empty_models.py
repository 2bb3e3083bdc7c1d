"""Hugging Face models without weights: built on the meta device from config.json, whatever their size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.parallel.weight_files import CheckpointUnusable

WHAT = "a Hugging Face checkpoint"


def empty_model(folder: Path | str, cls: Any = None, dtype: torch.dtype | None = None) -> Any:
    """The model that config.json describes: its parameters on the meta device, its buffers real, in eval mode.

    `cls` is a model class or one of transformers' Auto classes; by default what config.json says under
    `architectures`, else AutoModel. Without a `dtype` it is the checkpoint's own.
    """
    folder = Path(folder)
    transformers = library("transformers", WHAT, "'torchd[torch]'")
    config = _config(transformers, folder)
    chosen = cls if cls is not None else _class_of(transformers, config)
    make = chosen.from_config if hasattr(chosen, "from_config") else chosen._from_config
    wanted = dtype or getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    wanted = getattr(torch, wanted) if isinstance(wanted, str) else wanted
    with parameters_on_meta(), _default_dtype(wanted):
        config.dtype = wanted
        model = make(config)
    _compute_buffers_anew(model)
    _keep_in_float32(model, wanted)
    if getattr(model, "can_generate", bool)() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Every parameter made meanwhile goes to the meta device as a module takes it; buffers stay as they are computed.

    Under torch.device("meta") buffers would have no values either, and what is not in a checkpoint, such as the
    frequencies of rotary embeddings, would be lost.
    """

    def to_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if parameter is None or parameter.device.type == "meta":
            return None  # as it is: a tied parameter must stay the same object
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    # torch's annotation forgets that what a hook gives back is taken instead.
    hook = torch.nn.modules.module.register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _config(transformers: Any, folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointUnusable(f"{folder} has no config.json, which says what model the weights belong to")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointUnusable(f"{path} is no JSON: {error}") from error
    if not isinstance(said, dict) or "model_type" not in said:
        raise CheckpointUnusable(f"{path} names no model_type")
    if "quantization_config" in said:
        raise CheckpointUnusable(
            f"{path} describes quantized weights, which are not loaded by ranges; load them with from_pretrained"
        )
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ValueError as error:
        raise CheckpointUnusable(
            f"{path}: the installed transformers ({transformers.__version__}) knows no model "
            f"{said['model_type']!r}, and code that comes with a checkpoint is not run: {error}"
        ) from error


def _class_of(transformers: Any, config: Any) -> Any:
    for name in config.architectures or []:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            return found
    return transformers.AutoModel


def _compute_buffers_anew(model: Any) -> None:
    """Buffers that a model computes are computed in 32 bits and then rounded, as from_pretrained does.

    While the model was made, 16 bits may have been the default, in which tables of positions lose more.
    """
    if not hasattr(model, "initialize_weights"):
        return
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()  # of parameters on the meta device nothing is computed


def _keep_in_float32(model: Any, dtype: torch.dtype) -> None:
    """Some models say that parts of theirs overflow in 16 bits."""
    parts: set[str] = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        parts |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not parts or dtype not in (torch.float16, torch.bfloat16):
        return
    named = "|".join(re.escape(part).replace(r"\*", "[^.]+") for part in sorted(parts))
    pattern = re.compile(rf"(^|\.)({named})(\.|$)")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if pattern.search(name) and tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32)
