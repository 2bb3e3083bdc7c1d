"""Applies `optimize` to a handler's model, option after option, and compares the answers after each."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.device import ComputeThreads
from torchd_workers.handler import Handler
from torchd_workers.handlers.optimizing.outputs import NotComparable, Outputs, difference
from torchd_workers.handlers.optimizing.rehearsal import Rehearsal
from torchd_workers.handlers.optimizing.report import Difference, Option, Report
from torchd_workers.handlers.optimizing.samples import SamplesUnusable, read_samples
from torchd_workers.handlers.optimizing.steps import CannotOptimize, NotApplied, apply
from torchd_workers.handlers.optimizing.wish import OF_THE_MODEL, Optimize, asked

logger = logging.getLogger(__name__)

# What to do instead, for who is refused.
WAYS_OUT = {
    "dtype": {
        "weights": "cast: layers and cast: autocast keep float32 where it matters",
        "layers": "leave dtype out, or try float16 on a GPU",
        "autocast": "leave dtype out, or try float16 on a GPU",
    },
    "quantize": {
        "int8_dynamic": "int8_weight_only and dtype: bfloat16 come closer",
        "int8_weight_only": "dtype: bfloat16 comes closer",
    },
}


class AnswersChange(ValueError):
    """The optimised model answers otherwise than the original: the model is not served."""


class Optimizer:
    """One worker's wish, from before its handler is initialized to its first client."""

    def __init__(self, wish: Optimize, context: Context) -> None:
        self._wish = wish
        self._context = context
        self._report = Report()
        self._bodies: list[bytes] = []

    def begin(self, threads: ComputeThreads) -> None:
        """What must come before the handler is initialized: torch sets up its threads but once."""
        wish = self._wish
        if wish.samples:
            self._bodies = read_samples(self._context.system_properties["model_dir"], wish.samples)
        if wish.threads:
            threads.fix(wish.threads)
            self._did("threads", f"{torch.get_num_threads()} compute threads")
        if wish.interop_threads:
            try:
                torch.set_num_interop_threads(wish.interop_threads)
                self._did("interop_threads", f"{torch.get_num_interop_threads()} operators at the same time")
            except RuntimeError:
                self._did_not("interop_threads", "the handler's file has computed in parallel while it was imported")

    def optimize(self, service: Any, handler: Handler) -> Report:
        """Applies everything else to `service.model` and tries it on the samples; raises why it cannot or must not."""
        options = self._wish.names_of(OF_THE_MODEL)
        self._tell_pin_memory(service)
        if options:
            self._optimize_model(_model_of(service, options), options, service, handler)
        if self._wish.warmup:
            self._warm_up(Rehearsal(service, handler, self._wish.samples or "", self._bodies))
        return self._report

    def _optimize_model(self, model: torch.nn.Module, options: list[str], service: Any, handler: Handler) -> None:
        # No gradients: nobody learns here, and what would be kept for them takes time and memory.
        model.requires_grad_(False)
        _infer_without_gradients(service)
        rehearsal = Rehearsal(service, handler, self._wish.samples or "", self._bodies)
        original = self._original(rehearsal)
        device = _device_of(service, model)
        for name in options:
            try:
                detail = apply(name, model, self._wish, device, self._warn)
            except NotApplied as reason:
                self._did_not(name, str(reason))
                continue
            try:
                detail += self._compile_shapes(rehearsal) if name == "compile" else ""
                found = self._compare(name, original, rehearsal) if original is not None else None
            except SamplesUnusable as error:  # without the option they were answered
                raise CannotOptimize(f"optimize.{name} {asked(self._wish, name)}: {error}") from error
            self._did(name, detail, found)

    def _original(self, rehearsal: Rehearsal) -> Outputs | None:
        """What the model says before anything is done to it; None, and why in the report, if that cannot be told.

        Only the outputs stay: the model itself is changed in its place, so that there are never two.
        """
        if not self._bodies:
            self._report.unchecked = "no samples"
        elif self._context.group is not None:
            self._report.unchecked = "the model is split over several processes"
        else:
            try:
                return rehearsal.outputs()
            except NotComparable as reason:
                self._report.unchecked = str(reason)
        return None

    def _compare(self, name: str, original: Outputs, rehearsal: Rehearsal) -> Difference | None:
        try:
            found = difference(original, rehearsal.outputs())
        except NotComparable as reason:
            self._report.unchecked = str(reason)
            return None
        logger.info("optimize.%s: %s", name, found)
        if found.is_tolerable:
            return found
        out = WAYS_OUT.get(name, {}).get(self._way(name), f"leave {name} out")
        said = asked(self._wish, name)
        raise AnswersChange(f"optimize.{name} {said} changes the answers too much: {found}; {out}")

    def _way(self, name: str) -> str:
        detail = self._wish.quantize if name == "quantize" else self._wish.cast
        return detail or "layers"

    def _compile_shapes(self, rehearsal: Rehearsal) -> str:
        """Every shape is compiled at its first batch: that shall not be a client's."""
        if not self._bodies or self._context.group is not None:
            return "; compiled at the first requests, for want of samples"
        most = rehearsal.batch_size
        dynamic = self._wish.compile is not None and self._wish.compile.dynamic is not False
        # A second size tells the compiler which dimension varies; without that each is compiled by itself.
        sizes = sorted({1, min(2, most), most} if dynamic else set(range(1, most + 1)))
        _remember_shapes(len(sizes))
        for size in sizes:
            rehearsal.run(size, max(size, len(self._bodies) // size * size))
        return f"; warmed up with batches of {', '.join(map(str, sizes))}"

    def _warm_up(self, rehearsal: Rehearsal) -> None:
        if self._context.group is not None:
            self._did_not("warmup", "the model is split over several processes")
            return
        try:
            rehearsal.run(rehearsal.batch_size, self._wish.warmup)
        except NotComparable as reason:
            self._did_not("warmup", str(reason))
            return
        self._did("warmup", f"{self._wish.warmup} requests in batches of up to {rehearsal.batch_size}")

    def _tell_pin_memory(self, service: Any) -> None:
        if "pin_memory" not in self._wish.asked:
            return
        if hasattr(service, "_optimize"):
            self._did("pin_memory", "where inputs go to a CUDA device")
        else:
            self._did_not("pin_memory", "the handler does not derive from BaseHandler and moves its inputs itself")

    def _warn(self, text: str) -> None:
        logger.warning("optimize: %s", text)
        self._report.warnings.append(text)

    def _did(self, name: str, detail: str, found: Difference | None = None) -> None:
        self._report.options.append(Option(name, asked(self._wish, name), True, detail, found))

    def _did_not(self, name: str, reason: str) -> None:
        logger.warning("optimize.%s is not applied: %s", name, reason)
        self._report.options.append(Option(name, asked(self._wish, name), False, reason))


def _model_of(service: Any, options: list[str]) -> torch.nn.Module:
    wanted = " and ".join(options)
    model = getattr(service, "model", None)
    if model is None:
        raise CannotOptimize(f"optimize asks for {wanted}, but the handler has no self.model once it is initialized")
    model = getattr(model, "_orig_mod", model)  # `pt2:` has compiled it; the compiler sees what changes inside
    if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        return model
    raise CannotOptimize(
        f"optimize asks for {wanted}, but self.model is a program with types of its own ({type(model).__name__}): "
        "export it as you want it, or serve its weights with --model-file"
    )


def _device_of(service: Any, model: torch.nn.Module) -> torch.device:
    weights = next(model.parameters(), None)
    device = weights.device if weights is not None else getattr(service, "device", None)
    return torch.device(device or "cpu")


def _infer_without_gradients(service: Any) -> None:
    """Puts torch.inference_mode around the handler's inference; explanations, which need gradients, do not go there."""
    inference: Callable[..., Any] | None = getattr(service, "inference", None)
    if callable(inference) and not inspect.iscoroutinefunction(inference):
        service.inference = torch.inference_mode()(inference)


def _remember_shapes(count: int) -> None:
    """Lets the compiler keep so many forms of one function: beyond its limit it gives up and runs them uncompiled."""
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, 2 * count)
