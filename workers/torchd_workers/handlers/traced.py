"""TracedHandler: models that were traced, or compiled, at fixed shapes, whatever batches and lengths requests come in.

A batch is padded to the smallest program that fits, by rows and in length, and what the padding gave is dropped.
Several programs of one model are buckets of one archive (buckets.py says how they are described).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.buckets import Bucket, DescriptionInvalid, Input, TracedModel, traced_model
from torchd_workers.handlers.fixed_shapes import answers_of, empty_batch, joined, length_of, lengthened, mapped, padded
from torchd_workers.handlers.labels import load_label_mapping
from torchd_workers.handlers.optional_libraries import library
from torchd_workers.handlers.rows import BadInput, NotOneBatch, payload_of, stacked
from torchd_workers.handlers.timer import timed

Programs = dict[Bucket, Any]

# TorchScript watches its first run and rewrites the program in the second.
WARM_UPS = 2


class TracedHandler(BaseHandler):
    """Serves a traced model of any kind; a subclass overrides preprocess, postprocess, or both.

    Between them go batches: a tensor, a tuple of tensors, or a mapping of them by name, whose first dimension are the
    requests. preprocess gives one, inference takes it and gives one, postprocess makes a list of answers of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traced = TracedModel(())
        self.programs: Programs = {}
        # The lengths of the requests that the stock `preprocess` has put together; the subclass's own leaves it None.
        self.lengths: list[int] | None = None

    @property
    def max_length(self) -> int | None:
        """The length of the longest program, for a tokenizer to truncate to."""
        return self.traced.max_length

    def initialize(self, context: Context) -> None:
        """Loads every program the archive describes."""
        self.context = context
        self.manifest = context.manifest or {}
        self.model_yaml_config = context.model_yaml_config
        model_dir = context.system_properties["model_dir"]
        self.device = _device(context.system_properties.get("gpu_id"))
        serialized_file = self.manifest.get("model", {}).get("serializedFile")
        self.traced = traced_model(_description(self.model_yaml_config, model_dir), serialized_file)
        is_neuron = _register_neuron(self.traced.backend)
        self.programs = {
            bucket: _program(os.path.join(model_dir, bucket.file), None if is_neuron else self.device)
            for bucket in self.traced.buckets
        }
        self.model = self.programs[self.traced.buckets[0]]
        self._warm_up()
        self.mapping = load_label_mapping(os.path.join(model_dir, "index_to_name.json"))
        self.initialized = True

    def _warm_up(self) -> None:
        """Runs each program, so that one that cannot run fails now, and no request waits for what first runs do."""
        for bucket, program in self.programs.items():
            batch = empty_batch(self.traced.inputs, bucket)
            for _ in range(WARM_UPS if batch is not None else 0):
                with torch.no_grad():
                    program(*(tensor.to(self.device) for tensor in batch or ()))

    @timed
    def preprocess(self, data: Any) -> Any:
        """The inputs of the requests, each JSON: a value for the one input, or an object with a value for each."""
        rows = [self._row(payload_of(row)) for row in data]
        self.lengths = None
        if self.max_length is not None:
            lengths = [length_of(self._declared(len(row)), row) for row in rows]
            self.lengths = [length or 0 for length in lengths]
            for length in lengths:
                self.traced.bucket_for(1, length)  # refuses what no program takes, before others are padded to it
        return tuple(self._batch_of(entry, column) for entry, column in self._columns(rows))

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs for a batch of any size, in the order of its rows, without a trace of padding."""
        inputs = [tensor.to(self.device) for tensor in self._inputs(data)]
        sizes = {len(tensor) for tensor in inputs}
        if len(sizes) != 1:
            raise ValueError(f"the inputs of a batch must have as many rows each; they have {sorted(sizes)}")
        (rows,) = sizes
        declared = self._declared(len(inputs))
        length = length_of(declared, [tensor[0] for tensor in inputs]) if self.max_length is not None else None
        outputs = []
        at = 0
        while at < rows:
            bucket = self.traced.bucket_for(rows - at, length)
            part = [tensor[at : at + bucket.batch_size] for tensor in inputs]
            shaped = [padded(tensor, entry, bucket) for tensor, entry in zip(part, declared, strict=True)]
            with torch.no_grad():
                output = self.programs[bucket](*shaped)
            outputs.append(self._without_padding(output, bucket, len(part[0]), length))
            at += bucket.batch_size
        return joined(outputs)

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """One answer per request: numbers, or a list or an object of them where the model has several outputs."""
        return answers_of(data, self.lengths, self.traced.sequence_outputs)

    def _together(self, data: Any) -> Any:
        try:
            return self._answers(data, 0)
        except (BadInput, NotOneBatch):
            if len(data) == 1:
                raise
        return self._sound_together(data)

    def _sound_together(self, data: Any) -> list[Any]:
        """What one client got wrong costs the others nothing: they share one run, which takes as long as a row's."""
        if not self._requests() == len(getattr(self.context, "running", ())) == len(data):
            return self._one_by_one(data)
        sound = [row for row in range(len(data)) if self._is_sound(data, row)]
        if not 0 < len(sound) < len(data):
            return self._one_by_one(data)
        try:
            answers = dict(zip(sound, self._answers([data[row] for row in sound], sound[0]), strict=True))
        except (BadInput, NotOneBatch):
            return self._one_by_one(data)
        return [answers.get(row) for row in range(len(data))]

    def _is_sound(self, data: Any, row: int) -> bool:
        """Whether a request can be read; who sent one that cannot, is told."""
        try:
            self.preprocess([data[row]])
        except BadInput as error:
            running: Any = getattr(self.context, "running", ())
            running[row].failure = error
            return False
        return True

    def _row(self, payload: Any) -> list[torch.Tensor]:
        if isinstance(payload, bytes | bytearray | str):
            try:
                payload = json.loads(payload)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"the request's body is no JSON: {error}") from error
        if not isinstance(payload, Mapping):
            if len(self.traced.inputs) > 1:
                raise BadInput(f"the model has several inputs; send an object with {_names(self.traced.inputs)}")
            return [_tensor(payload, self._declared(1)[0])]
        missing = [entry for entry in self.traced.inputs if entry.name not in payload]
        if missing or not self.traced.inputs:
            raise BadInput(
                f"the request lacks {_names(missing)}" if missing else "the request is an object; send a list"
            )
        return [_tensor(payload[entry.name], entry) for entry in self.traced.inputs]

    def _columns(self, rows: Sequence[Sequence[torch.Tensor]]) -> list[tuple[Input, list[torch.Tensor]]]:
        """The rows' tensors input by input."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        return list(zip(self._declared(len(columns)), columns, strict=True))

    def _batch_of(self, entry: Input, column: list[torch.Tensor]) -> torch.Tensor:
        """One input of the batch; where rows have a length, the shorter are padded to the longest."""
        if self.max_length is not None and entry.sequence and column[0].dim():
            longest = max(len(row) for row in column)
            column = [lengthened(row, 0, longest, entry.padding) for row in column]
        return stacked(column)

    def _inputs(self, data: Any) -> list[torch.Tensor]:
        """A batch as the positional arguments of the program."""
        if isinstance(data, torch.Tensor):
            return [data]
        if not isinstance(data, Mapping):
            return list(data)
        if not self.traced.inputs:
            return list(data.values())
        missing = [entry for entry in self.traced.inputs if entry.name not in data]
        if missing:
            raise ValueError(f"preprocess gave {', '.join(data)}; the model also takes {_names(missing)}")
        return [data[entry.name] for entry in self.traced.inputs]

    def _declared(self, count: int) -> Sequence[Input]:
        """What is said of the inputs; where nothing is, they are padded with zeros and may have any type."""
        inputs = self.traced.inputs or tuple(Input(str(place)) for place in range(count))
        if len(inputs) != count:
            raise ValueError(f"the model has {len(inputs)} inputs, {_names(inputs)}; preprocess gave {count}")
        return inputs

    def _without_padding(self, output: Any, bucket: Bucket, rows: int, length: int | None) -> Any:
        def cut(tensor: torch.Tensor, place: int | str) -> torch.Tensor:
            if not tensor.dim() or len(tensor) != bucket.batch_size:
                raise ValueError(
                    f"output {place} of {bucket.file} has the shape {tuple(tensor.shape)}; a traced model must answer "
                    f"each of its {bucket.batch_size} rows in every output"
                )
            tensor = tensor[:rows]
            return tensor[:, :length] if place in self.traced.sequence_outputs else tensor

        return mapped(output, cut)


def _device(gpu: int | str | None) -> torch.device:
    """A lent GPU, else the CPU: programs for NeuronCores take and give tensors of the CPU, on XLA machines too."""
    return torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")


def _description(model_config: Mapping[str, Any], model_dir: str) -> Mapping[str, Any]:
    """What the archive says of its programs."""
    source, found = "traced in model-config.yaml", model_config.get("traced")
    path = os.path.join(model_dir, "config.json")
    if found is None and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            source, found = "config.json", json.load(file)
    if found is None:
        raise DescriptionInvalid(
            "nothing says at which shapes the model was traced: the archive needs `traced` in model-config.yaml, or a "
            "config.json, with batch_size (and max_length), or with buckets"
        )
    if not isinstance(found, Mapping):
        raise DescriptionInvalid(f"{source} holds a {type(found).__name__}; expected keys such as batch_size")
    return found


def _register_neuron(backend: str) -> bool:
    """Makes the operators of Neuron's programs known to torch.jit.load; whether there are any."""
    if backend == "neuron":
        library("torch_neuronx", "a program traced for NeuronCores", "torch-neuronx (AWS Neuron SDK)")
        return True
    if backend or importlib.util.find_spec("torch_neuronx") is None:
        return False
    importlib.import_module("torch_neuronx")
    return True


def _program(path: str, device: torch.device | None) -> Any:
    """A traced program; None for `device` leaves the place to the program, as Neuron's do it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the archive has no program {os.path.basename(path)}")
    program: Any = torch.jit.load(path) if device is None else torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    return program.eval()


def _tensor(value: Any, entry: Input) -> torch.Tensor:
    try:
        tensor = torch.tensor(value, dtype=entry.dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"input {entry.name!r} is no tensor: {error}") from error
    if entry.shape is not None and not _matches(tuple(tensor.shape), entry.shape):
        raise BadInput(f"input {entry.name!r} has the shape {tuple(tensor.shape)}; the model takes {entry.shape}")
    return tensor


def _matches(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def _names(inputs: Sequence[Input]) -> str:
    return ", ".join(repr(entry.name) for entry in inputs)
