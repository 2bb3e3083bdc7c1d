"""From the name of a handler to something callable, by TorchServe's rules."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from json import loads
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchd_protos.frames import Load
from torchd_workers.classes import classes_in
from torchd_workers.context import Context
from torchd_workers.device import ComputeThreads
from torchd_workers.handler import Entry, Handler, Row
from torchd_workers.handlers import HANDLERS
from torchd_workers.handlers.envelopes import ENVELOPES
from torchd_workers.metrics import Metrics

if TYPE_CHECKING:  # it imports torch
    from torchd_workers.handlers.optimizing.optimizer import Optimizer

SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torchserve_shim")


class HandlerNotUsable(ValueError):
    """The archive's handler does not have the form it needs. `place` is (file, line), where there is one."""

    def __init__(self, message: str, place: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        if place is not None:
            self.place = place


def context_for(load: Load, metrics: Metrics) -> Context:
    """The context of the model that `load` describes."""
    context = Context(
        load.model,
        load.directory,
        loads(load.manifest_json) if load.manifest_json else None,
        load.batch_size,
        load.gpu_id,
        limit_max_image_pixels=load.limit_image_pixels,
        metrics=metrics,
        model_yaml_config=loads(load.config_json) if load.config_json else {},
    )
    context.header_key_sequence_id = load.sequence_header_id or context.header_key_sequence_id
    context.header_key_sequence_start = load.sequence_header_start or context.header_key_sequence_start
    context.header_key_sequence_end = load.sequence_header_end or context.header_key_sequence_end
    return context


def load_handler(name: str, context: Context, threads: ComputeThreads, envelope: str = "") -> Handler:
    """Imports the handler `name` ("module", "module:function", "module.py"), initializes it, raises what it raises.

    `envelope` names the service envelope that requests come in; "" is none.
    """
    directory = context.system_properties["model_dir"]
    sys.path[:0] = [SHIM, directory]
    path, _, function = name.partition(":")
    module = import_handler(os.path.basename(path).removesuffix(".py"), directory)
    threads.apply()  # before initialize: a handler that sets its own number has the last word
    optimizer = _optimizer(context)
    if optimizer is not None:
        optimizer.begin(threads)
    entry = getattr(module, function or "handle", None)
    if entry is not None:
        # What functions written for TorchServe call the object that does their work.
        service, handler = getattr(module, "_service", None), _function_handler(entry, context)
    else:
        service, handler = _class_handler(_handler_class(module, function), context)
    if envelope:
        context.enveloped = True
        handler = Handler(_opening(envelope, handler.entry), context, handler.cost)
    if optimizer is not None:
        context.optimization_json = optimizer.optimize(service, handler).to_json()
    return handler


def _optimizer(context: Context) -> Optimizer | None:
    """What sees to `optimize:` of the configuration, where there is one."""
    if not context.model_yaml_config.get("optimize"):
        return None
    # Imported where it is used: it imports torch.
    from torchd_workers.handlers.optimizing.optimizer import Optimizer
    from torchd_workers.handlers.optimizing.wish import optimize_of

    return Optimizer(optimize_of(context.model_yaml_config), context)


def import_handler(name: str, directory: str) -> ModuleType:
    """The archive's module `name`, else the handler of that name that torchd brings."""
    own_file = os.path.join(directory, f"{name}.py")
    if name in sys.modules and os.path.isfile(own_file):
        return _import_beside(name, own_file)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An import that fails inside the handler is the handler's failure, not a hint to look elsewhere.
        if error.name != name:
            raise
    if name not in HANDLERS:
        brought = ", ".join(HANDLERS)
        raise HandlerNotUsable(
            f"the archive has no handler {name}.py, and torchd brings no handler of that name ({brought})"
        )
    return importlib.import_module(HANDLERS[name])


def _import_beside(name: str, file: str) -> ModuleType:
    """Imports the archive's file under another name: the standard library or this runtime has taken its own."""
    loader = SourceFileLoader(f"{name} of the model", file)
    module = ModuleType(loader.name)
    module.__file__ = file
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def _function_handler(entry: Entry, context: Context) -> Handler:
    _check_call(entry, "data", "context")
    entry(None, context)  # type: ignore[arg-type]  # TorchServe's sign to a function that it should load its model
    return Handler(entry, context)


def _class_handler(cls: type[Any], context: Context) -> tuple[Any, Handler]:
    service = cls()
    _check_call(service.initialize, "context")
    service.initialize(context)
    # Taken after initialize, which may put another handle in its place.
    entry = service.handle
    _check_call(entry, "data", "context")
    return service, Handler(entry, context, _cost_of(service))


def _cost_of(service: Any) -> str:
    """What its requests are batched by; one that takes them one at a time pads nothing."""
    cost = getattr(service, "batching_cost", "")
    return cost if isinstance(cost, str) and getattr(service, "takes_batches", True) else ""


def _opening(envelope: str, entry: Entry) -> Entry:
    """The entry point behind an envelope. A description has no input that could come in one."""
    if envelope not in ENVELOPES:
        raise HandlerNotUsable(f"service_envelope {envelope!r} is unknown; it may be {', '.join(ENVELOPES)}")
    (cls,) = classes_in(importlib.import_module(ENVELOPES[envelope]))

    def handle(data: list[Row], context: Context) -> Any:
        if context.get_request_header(0, "describe") == "True":
            return entry(data, context)
        # One for each call: it remembers its batch, and async handlers have many calls at once.
        return cls(entry).handle(data, context)

    return handle


def _handler_class(module: ModuleType, function: str) -> type[Any]:
    found = [cls for cls in classes_in(module) if hasattr(cls, "handle") and hasattr(cls, "initialize")]
    if len(found) == 1:
        return found[0]
    file = os.path.basename(module.__file__ or module.__name__)
    missing = f"function {function!r}" if function else "function 'handle'"
    if found:
        names = ", ".join(cls.__name__ for cls in found)
        raise HandlerNotUsable(f"{file} has {len(found)} handler classes ({names}); it must have exactly one")
    raise HandlerNotUsable(f"{file} has no {missing} and no class with the methods initialize and handle")


def _check_call(entry: Callable[..., Any], *names: str) -> None:
    """Finds a wrong signature while the model loads, not when the first client calls."""
    if not callable(entry):
        raise HandlerNotUsable(f"the handler's entry point is {entry!r:.100}, which cannot be called")
    try:
        signature = inspect.signature(entry)
    except (TypeError, ValueError):
        return  # written in C: only a call would tell
    try:
        signature.bind(*names)
    except TypeError as error:
        name = getattr(entry, "__qualname__", type(entry).__name__)
        wanted = ", ".join(names)
        raise HandlerNotUsable(f"{name}{signature} cannot be called with ({wanted}): {error}", _place(entry)) from None


def _place(entry: Callable[..., Any]) -> tuple[str, int] | None:
    code = getattr(inspect.unwrap(entry), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
