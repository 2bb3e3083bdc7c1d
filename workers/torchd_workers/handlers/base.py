"""BaseHandler, which handlers derive from: loads a model of any kind torchd knows and runs tensors through it."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
import zipfile
from pickle import UnpicklingError
from typing import Any

import torch

from torchd_workers.classes import classes_in
from torchd_workers.context import Context
from torchd_workers.handlers.devices import device_for, enter, moved
from torchd_workers.handlers.labels import load_label_mapping
from torchd_workers.handlers.mapped_weights import load_mapped
from torchd_workers.handlers.optimizing.precision import cast_for, in_dtype
from torchd_workers.handlers.optimizing.wish import Optimize, optimize_of
from torchd_workers.handlers.profiling import is_profiler_enabled, profiler_for
from torchd_workers.handlers.programs import is_onnx_session, load_compiled, load_onnx, run_onnx
from torchd_workers.handlers.pt2 import compile_arguments
from torchd_workers.handlers.rows import BadInput, NotOneBatch, payload_of
from torchd_workers.handlers.timer import timed

logger = logging.getLogger(__name__)


class BaseHandler:
    """TorchServe's base class for handlers: initialize once, then preprocess, inference, postprocess for each batch."""

    # A handler that takes one request at a time says False; the requests of a batch then come one after another.
    takes_batches = True
    # What inputs of like size are batched together by: "tokens", "pixels" or "bytes"; "" is the order of arrival.
    batching_cost = ""
    _optimize = Optimize()

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: torch.device | None = None
        self.initialized = False
        self.context: Context | None = None
        self.model_pt_path: str | None = None
        self.manifest: dict[str, Any] | None = None
        self.map_location: str | None = None
        self.explain = False
        self.target: Any = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Context) -> None:
        """Chooses the device, loads the model and the names of its classes."""
        self.context = context
        self.manifest = context.manifest or {}
        self.model_yaml_config = context.model_yaml_config
        self._optimize = optimize_of(self.model_yaml_config)
        self.device = device_for(context.system_properties.get("gpu_id"))
        enter(self.device)
        self.map_location = self.device.type
        files = self.manifest.get("model", {})
        model_dir = context.system_properties["model_dir"]
        weights = files.get("serializedFile")
        self.model_pt_path = os.path.join(model_dir, weights) if weights else None
        self.model = self._load_model(model_dir, files.get("modelFile"))
        self._compile()
        self.mapping = load_label_mapping(os.path.join(model_dir, "index_to_name.json"))
        self.initialized = True

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch as one tensor. Rows give their "data" or "body", as JSON if it came as bytes."""
        if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
            data = [_tensor_like(row) for row in data]
        return self._to_device(torch.as_tensor(data))

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for a tensor."""
        if is_onnx_session(self.model):
            return run_onnx(self.model, data)
        with torch.inference_mode():
            return self.model(self._to_device(data), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """One answer per request from the model's output."""
        answers: list[Any] = data.tolist()
        return answers

    def handle(self, data: Any, context: Context) -> Any:
        """Answers one batch; requests with the header `explain` or `describe` get those instead of a prediction."""
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle() for _ in data]
        elif len(data) > 1 and not self._can_share(len(data)):
            output = self._one_by_one(data)
        else:
            output = self._together(data)
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", milliseconds, None, "ms")
        return output

    def _can_share(self, size: int) -> bool:
        """Whether the requests of a batch may share one call: an explanation is of one request, about its target."""
        if not self.takes_batches:
            return False
        # Behind an envelope rows are no requests, and it has seen to explanations.
        return self._requests() != size or not any(self._is_explain(row) for row in range(size))

    def _requests(self) -> int:
        """How many requests the batch has, each a row of its own; 0 where rows are no requests."""
        context = self.context
        return 0 if getattr(context, "enveloped", False) else len(getattr(context, "request_processor", ()))

    def _together(self, data: Any) -> Any:
        try:
            return self._answers(data, 0)
        except (BadInput, NotOneBatch):
            if len(data) == 1:
                raise
            return self._one_by_one(data)

    def _one_by_one(self, data: Any) -> list[Any]:
        return [answer for row in range(len(data)) for answer in self._answer_alone(data, row)]

    def _answer_alone(self, data: Any, row: int) -> Any:
        try:
            return self._answers([data[row]], row)
        except BadInput as error:
            running = getattr(self.context, "running", ())
            if not self._requests() == len(running) == len(data):
                raise
            running[row].failure = error
            return [None]

    def _answers(self, data: Any, first: int) -> Any:
        """The answers to requests that share a call, the first of them at this place in the batch."""
        explain = self._is_explain(first if first < self._requests() else 0)
        if is_profiler_enabled():
            return self._infer_with_profiler(data, explain)[0]
        prepared = self.preprocess(data)
        return self.explain_handle(prepared, data) if explain else self.postprocess(self.inference(prepared))

    def _infer_with_profiler(self, data: Any, explain: bool | None = None) -> tuple[Any, Any]:
        """The answers, and the profile of the steps that made them."""
        explain = self._is_explain() if explain is None else explain
        manifest = self.manifest or (self.context.manifest if self.context is not None else None) or {}
        with profiler_for(self.profiler_args, manifest.get("model", {}).get("modelName", "")) as profiler:
            with torch.profiler.record_function("preprocess"):
                prepared = self.preprocess(data)
            if explain:
                with torch.profiler.record_function("explain"):
                    output = self.explain_handle(prepared, data)
            else:
                with torch.profiler.record_function("inference"):
                    scores = self.inference(prepared)
                with torch.profiler.record_function("postprocess"):
                    output = self.postprocess(scores)
        logger.info("%s", profiler.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        return output, profiler

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Explanations by the handler's own `get_insights`, for the first row's input and `target`."""
        row = raw_data[0]
        inputs = None
        self.target = 0
        if isinstance(row, dict):
            inputs = row.get("data") or row.get("body")
            self.target = row.get("target") or 0
        return self.get_insights(data_preprocess, inputs, self.target)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """To be overridden by handlers that explain their predictions."""
        raise NotImplementedError(
            f"{type(self).__name__} explains nothing: it overrides neither get_insights nor explain_handle"
        )

    def describe_handle(self) -> Any:
        """What the handler says about itself; to be overridden."""
        return {}

    def get_device(self) -> torch.device | None:
        """The device the model is on."""
        return self.device

    def _is_explain(self, row: int = 0) -> bool:
        self.explain = self.context is not None and self.context.get_request_header(row, "explain") == "True"
        return self.explain

    def _is_describe(self) -> bool:
        return self.context is not None and self.context.get_request_header(0, "describe") == "True"

    def _load_model(self, model_dir: str, model_file: str | None) -> Any:
        path = self.model_pt_path
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(f"the archive has no weights file {os.path.basename(path)}")
        if model_file:
            model = self._load_pickled_model(model_dir, model_file, path)
        elif path is not None and path.endswith(".pt"):
            model = self._load_torchscript_model(path)
        else:
            return self._narrowed(self._load_program(path))
        return self._narrowed(model).to(self.device).eval()

    def _narrowed(self, model: Any) -> Any:
        """The model in the type that `optimize:` asks for, so that the device need never hold the wider weights.

        Where samples are compared, or the weights stay in main memory, the optimizer narrows it after `initialize`.
        """
        wish, device = self._optimize, self.device or torch.device("cpu")
        if wish.dtype is None or wish.samples or device.type == "cpu" or (wish.cast or cast_for(device)) != "weights":
            return model
        return in_dtype(model, wish.dtype, device)

    def _to_device(self, data: Any) -> Any:
        return moved(data, self.device, self._optimize.pin_memory)

    def _load_program(self, path: str | None) -> Any:
        device = self.device or torch.device("cpu")
        if path is None:
            raise RuntimeError("no model to load: the manifest names neither a modelFile nor a serializedFile")
        if path.endswith(".onnx"):
            return load_onnx(path, device)
        if path.endswith((".so", ".pt2")):
            return load_compiled(path, device)
        name = os.path.basename(path)
        raise RuntimeError(f"No model weights could be loaded: {name} needs --model-file with the class it belongs to")

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """An eager model: the one class in the model file, with the weights of the serialized file if there is one."""
        if not os.path.isfile(os.path.join(model_dir, model_file)):
            raise FileNotFoundError(f"the archive has no model file {model_file}")
        module = importlib.import_module(model_file.removesuffix(".py"))
        classes = classes_in(module, torch.nn.Module)
        if len(classes) != 1:
            names = ", ".join(cls.__name__ for cls in classes) or "none"
            raise ValueError(f"{model_file} must define exactly one torch.nn.Module; it defines {names}")
        model = classes[0]()
        if model_pt_path is not None:
            self._fill(model, self._load_weights(model_pt_path))
        return model

    def _fill(self, model: torch.nn.Module, weights: Any) -> None:
        if self.device is not None and self.device.type == "cpu":
            load_mapped(model, weights)
        else:
            model.load_state_dict(weights)

    def _load_weights(self, path: str) -> Any:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # optional: only who has such weights needs it

            return load_file(path, device=str(self.device))
        if _is_torchscript(path):
            raise ValueError(f"{os.path.basename(path)} is a TorchScript program; pack it without --model-file")
        # Tensors are mapped, not read, where the file is a zip of them: several workers share the pages.
        try:
            return torch.load(path, map_location=self.device, weights_only=True, mmap=zipfile.is_zipfile(path))
        except UnpicklingError as error:
            raise ValueError(
                f"{os.path.basename(path)} is no plain state dict: it holds objects that only running code could make. "
                "Save model.state_dict() with torch.save, or safetensors"
            ) from error

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """A TorchScript program."""
        if not _is_torchscript(model_pt_path):
            raise ValueError(
                f"{os.path.basename(model_pt_path)} holds weights and no TorchScript program; "
                "pack it with --model-file and the class they belong to"
            )
        return torch.jit.load(model_pt_path, map_location=self.device)  # type: ignore[no-untyped-call]

    def _compile(self) -> None:
        arguments = compile_arguments(self.model_yaml_config.get("pt2"))
        if arguments is None:
            return
        try:
            self.model = torch.compile(self.model, **arguments)
            logger.info("model compiled with %s", arguments)
        except Exception:  # an answer from the uncompiled model is better than none
            logger.warning("torch.compile(%s) failed; the model runs uncompiled", arguments, exc_info=True)


def _tensor_like(row: dict[str, Any]) -> Any:
    value = payload_of(row)
    if not isinstance(value, bytes | bytearray | str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request's body is no JSON: {error}") from error


def _is_torchscript(path: str) -> bool:
    """torch.jit.save and torch.save both write a zip; only programs have constants.pkl beside data.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
