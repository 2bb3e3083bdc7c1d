"""A transformers model's forward that runs a pipeline, so that `generate` and plain calls work as before.

`generate` reads each prompt once: each stage keeps the keys and values of its own blocks between the steps.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchd_workers.handlers.parallel.pipeline import Pipeline

# What only a model in one piece can give or take.
_REFUSED = ("labels", "inputs_embeds", "output_attentions", "output_hidden_states")


class PipelinedForward:
    """The leader's side of a model whose blocks are elsewhere."""

    def __init__(self, pipeline: Pipeline, model: Any, output: type[Any]) -> None:
        """`model` has its own forward yet; `output` is what that returns."""
        self._pipeline = pipeline
        self._replaced = model.forward
        self._signature = inspect.signature(model.forward)
        self._can_cache = model.can_generate() and "past_key_values" in self._signature.parameters
        self._output = output

    def replacement(self) -> Callable[..., Any]:
        """A function with the arguments of the forward, which `generate` looks at."""

        @functools.wraps(self._replaced)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(self._signature.bind(*args, **kwargs).arguments)

        return forward

    def _run(self, arguments: dict[str, Any]) -> Any:
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        refused = [name for name in _REFUSED if arguments.pop(name, None) is not None]
        if refused:
            raise NotImplementedError(f"a pipeline's forward has no {', '.join(refused)}")
        whole = arguments.pop("return_dict", True)
        generated = self._generated(arguments.pop("past_key_values", None), arguments.pop("use_cache", None))
        inputs = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        options = {name: value for name, value in arguments.items() if value is not None and name not in inputs}
        odd = [name for name, value in options.items() if not isinstance(value, bool | int | float | str)]
        if odd:
            raise NotImplementedError(
                f"a pipeline's stages cannot be told {', '.join(odd)}: tensors and plain values go there"
            )
        output = self._step(inputs, options, generated)
        return output.to_tuple() if whole is False else output

    def _step(self, inputs: Mapping[str, torch.Tensor], options: Mapping[str, Any], generated: Any) -> Any:
        if generated is None:
            return self._output(**self._pipeline.step(inputs, options))
        made = self._pipeline.step(inputs, options, run=generated.run)
        generated.seen += inputs["input_ids"].shape[1]
        return self._output(**made, past_key_values=generated)

    def _generated(self, past: Any, use_cache: bool | None) -> Any:
        """What stands for the cache: the one from the last step, or a new one where a generation begins."""
        from torchd_workers.handlers.parallel.stage_cache import GeneratedSoFar

        if isinstance(past, GeneratedSoFar):
            return past
        if past is not None and past.get_seq_length() > 0:
            raise NotImplementedError("a pipeline cannot take up a cache that something else has filled")
        # A cache of a fixed size, which `generate` can be asked for, is of no use to the stages; they have their own.
        if not use_cache or not self._can_cache:
            return None
        run = self._pipeline.new_run()
        generated = GeneratedSoFar(run, functools.partial(self._pipeline.reorder, run))
        weakref.finalize(generated, self._pipeline.end_run, run)
        return generated
