"""What traces a model at fixed shapes: AWS Neuron's compiler, or torch.jit on any machine.

All of torch_neuronx is here. Its calls are those of its reference, "PyTorch NeuronX Tracing API for Inference"
(docs/neuron.md has the address). The worker needs of it no more than the import (handlers/traced.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchd_workers.handlers.optional_libraries import library

Inputs = tuple[torch.Tensor, ...]
Trace = Callable[[torch.nn.Module, Inputs], Any]


def neuron(compiler_args: Sequence[str] = (), compiler_workdir: str | None = None, target: str = "") -> Trace:
    """Compiles for NeuronCores. `target` ("inf2", "trn1") compiles on a machine that has none."""
    torch_neuronx: Any = library("torch_neuronx", "--backend neuron", "torch-neuronx neuronx-cc (AWS Neuron SDK)")
    arguments = [*compiler_args, *(["--target", target] if target else [])]
    chosen: dict[str, Any] = {"compiler_args": arguments} if arguments else {}
    if compiler_workdir is not None:
        chosen["compiler_workdir"] = compiler_workdir
    if target:
        chosen["cpu_backend"] = True
    return lambda model, inputs: torch_neuronx.trace(model, inputs, **chosen)


def cpu() -> Trace:
    """Records the same model at the same shapes for any machine."""

    def trace(model: torch.nn.Module, inputs: Inputs) -> Any:
        with warnings.catch_warnings():
            # It warns of each shape that becomes a constant, and that is what is wanted.
            warnings.simplefilter("ignore")
            # Its own check would trace a second time; trace_bert.py compares the program with the model on other data.
            return torch.jit.trace(model, inputs, check_trace=False)  # type: ignore[no-untyped-call]

    return trace
