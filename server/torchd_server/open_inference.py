"""The use cases of the Open Inference Protocol: what is ready, what a model takes and gives, and inference on tensors.

Tensors travel to the worker and back as torchd_protos/tensors.py packs them; this side reads only their head.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchd_protos import tensors
from torchd_protos.frames import Call, Header, Part, Reply
from torchd_server import __version__, errors
from torchd_server.inference import Inference
from torchd_server.model import ModelState, ModelVersion
from torchd_server.registry import ModelRegistry
from torchd_server.request import Request

SERVER_NAME = "torchd"
PLATFORM = "pytorch"
# What of the protocol's extensions there is.
EXTENSIONS = ("binary_tensor_data", "model_repository")
ACCEPT_TENSORS = Header("accept", tensors.CONTENT_TYPE)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who serves."""

    name: str = SERVER_NAME
    version: str = __version__
    extensions: tuple[str, ...] = EXTENSIONS


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output, as model-config.yaml declares it; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What one model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One version in the list of all."""

    name: str
    version: str
    is_ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Tensors from a model: the response's head, complete, and the raw data of its outputs in order."""

    head: Mapping[str, Any]
    raw: Sequence[memoryview]
    is_last: bool


class OpenInference:
    """Answers about models and runs inference on tensors."""

    def __init__(self, registry: ModelRegistry, inference: Inference) -> None:
        self._registry = registry
        self._inference = inference

    def on_drain(self, tell: Callable[[], object]) -> Callable[[], None]:
        """Has `tell` called when the server begins to drain; gives what takes that back."""
        return self._inference.on_drain(tell)

    def server_is_ready(self) -> bool:
        """Whether every default version that wants workers has them, and the server is not draining."""
        return self._inference.is_healthy()

    def model_is_ready(self, name: str, version: str = "") -> bool:
        """Whether this version can answer now; raises ModelNotFound or VersionNotFound."""
        return self._get(name, version).state is ModelState.READY

    def names(self) -> list[str]:
        """The models, in order of their names."""
        return self._registry.names()

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """What a model takes and gives; its versions are all that are registered, or the one that was asked for."""
        model = self._get(name, version, "model_name")
        versions = [version] if version else [each.version for each in self._registry.versions(name)]
        config = model.unpacked.config
        return ModelMetadata(
            name, tuple(versions), PLATFORM, _declared(config.get("inputs")), _declared(config.get("outputs"))
        )

    def index(self, only_ready: bool) -> list[ModelIndex]:
        """Every version of every model."""
        rows = [
            ModelIndex(model.name, model.version, model.state is ModelState.READY, model.state.value)
            for model in self._registry
        ]
        return sorted((row for row in rows if row.is_ready or not only_ready), key=lambda row: (row.name, row.version))

    async def infer(self, name: str, version: str, body: bytes, headers: Sequence[Header], timeout_ms: int) -> Reply:
        """The one answer to packed tensors; a handler that streams gives more, which is NotSupported here."""
        replies = self.submit(name, version, body, headers, timeout_ms).replies()
        try:
            reply = await anext(replies)  # a request always ends in a reply or an error
        finally:
            await replies.aclose()
        if reply.more:
            raise errors.NotSupported(f"model '{name}' streams its answers; call ModelStreamInfer")
        return reply

    def submit(self, name: str, version: str, body: bytes, headers: Sequence[Header], timeout_ms: int) -> Request:
        """Accepts packed tensors or refuses them at once; whoever leaves early cancels the request."""
        return self._inference.submit(
            Call(
                model=name,
                version=version,
                request_id=str(uuid.uuid4()),
                headers=[*headers, ACCEPT_TENSORS],
                parts=[Part("body", tensors.CONTENT_TYPE, body)],
                timeout_ms=timeout_ms,
            )
        )

    def answer_of(self, reply: Reply, asked: Mapping[str, Any], name: str, version: str) -> Answer:
        """A worker's reply as the answer to the request with the head `asked`: its id, the outputs it wants."""
        try:
            head, data = tensors.unpack(reply.body)
            shares = tensors.raw_of_each(head.get("outputs"), data)
        except tensors.TensorsInvalid as error:
            raise errors.BadOutput(f"the worker's answer is not packed tensors: {error}") from error
        if any(share is None for share in shares):
            raise errors.BadOutput("the worker's answer has an output without data")
        if reply.status >= 400:
            raise errors.HandlerFailed(f"the handler answered with status {reply.status}", status=reply.status)
        outputs = [(tensor, share) for tensor, share in zip(head["outputs"], shares, strict=True) if share is not None]
        wanted = [output["name"] for output in asked.get("outputs") or ()]
        if wanted:
            found = {tensor["name"]: (tensor, share) for tensor, share in outputs}
            missing = [output for output in wanted if output not in found]
            if missing:
                raise errors.BadRequest(
                    f"model '{name}' gives no output '{missing[0]}'; it gives {errors.some_of(list(found))}"
                )
            outputs = [found[output] for output in wanted]
        complete = {
            **head,
            "model_name": name,
            "model_version": str(head.get("model_version") or version or self._version(name)),
            "id": asked.get("id") or str(head.get("id") or ""),
            "outputs": [tensor for tensor, _ in outputs],
        }
        return Answer(complete, [share for _, share in outputs], not reply.more)

    def _version(self, name: str) -> str:
        try:
            return self._registry.get(name).version
        except errors.NotFound:  # it went away while it answered
            return ""

    def _get(self, name: str, version: str, parameter: str = "name") -> ModelVersion:
        if not name:
            raise errors.BadRequest(f"Parameter {parameter} is required.")
        return self._registry.get(name, version)


def _declared(rows: Any) -> tuple[TensorMetadata, ...]:
    """Rows of model-config.yaml; what is no row of a tensor is the handler's own and left out."""
    if not isinstance(rows, list):
        return ()
    return tuple(
        TensorMetadata(row["name"], row["datatype"], tuple(row["shape"]))
        for row in rows
        if isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and row.get("datatype") in tensors.DATATYPES
        and isinstance(row.get("shape"), list)
        and all(type(size) is int for size in row["shape"])
    )
