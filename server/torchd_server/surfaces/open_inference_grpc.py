"""The Open Inference Protocol over gRPC, under the protocol's own name and under TorchServe's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from torchd_protos import open_inference_pb2 as pb
from torchd_protos import tensors
from torchd_protos.frames import Header
from torchd_server import errors
from torchd_server.open_inference import Answer, OpenInference, ServerMetadata
from torchd_server.request import Request
from torchd_server.surfaces.grpc_methods import Methods
from torchd_server.surfaces.status import abort, grpc_status_of

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
TORCHSERVE_PACKAGE = "org.pytorch.serve.grpc.openinference"
NAMES = (SERVICE.full_name, f"{TORCHSERVE_PACKAGE}.{SERVICE.name}")
# Requests of one stream that are accepted before the first of them is answered.
STREAMED_AHEAD = 16
FINAL = "triton_final_response"
WANTS_FINAL = "triton_enable_empty_final_response"

# Where InferTensorContents keeps the elements of a datatype; FP16 and BF16 have no place and travel raw.
_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Metadata that gRPC itself adds; everything else is the client's and reaches the handler.
_GRPC_METADATA = ("grpc-", "user-agent")


def add_to_server(surface: OpenInferenceSurface, server: grpc.aio.Server | Methods) -> None:
    """Serves it under both names; the messages are the same on the wire."""
    handlers = {}
    for method in SERVICE.methods:
        make = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            getattr(surface, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(name, handlers) for name in NAMES))


def torchserves_file() -> bytes:
    """The contract under TorchServe's package name, for reflection."""
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.name = f"torchd_protos/torchserve_{file.name.rpartition('/')[2]}"
    file.package = TORCHSERVE_PACKAGE
    old, new = f".{pb.DESCRIPTOR.package}.", f".{TORCHSERVE_PACKAGE}."
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            if field.type_name.startswith(old):
                field.type_name = new + field.type_name.removeprefix(old)
    for method in file.service[0].method:
        method.input_type = new + method.input_type.removeprefix(old)
        method.output_type = new + method.output_type.removeprefix(old)
    return file.SerializeToString()


@dataclass(frozen=True, slots=True)
class _Streamed:
    """One request of a stream: accepted, or refused with an error."""

    asked: pb.ModelInferRequest
    head: Mapping[str, Any]
    request: Request | None
    error: Exception | None = None


class OpenInferenceSurface:
    """Translates; `OpenInference` decides."""

    def __init__(self, open_inference: OpenInference) -> None:
        self._use = open_inference

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """It runs, or nobody would answer."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether every model that wants workers has them."""
        return pb.ServerReadyResponse(ready=self._use.server_is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether one model can answer."""
        try:
            return pb.ModelReadyResponse(ready=self._use.model_is_ready(request.name, request.version))
        except Exception as error:
            await abort(context, error)
            raise

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Who serves."""
        return pb.ServerMetadataResponse(**asdict(ServerMetadata()))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        try:
            return pb.ModelMetadataResponse(**asdict(self._use.model_metadata(request.name, request.version)))
        except Exception as error:
            await abort(context, error)
            raise

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """Every version of every model."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=row.name,
                    version=row.version,
                    state="READY" if row.is_ready else "UNAVAILABLE",
                    reason=row.reason,
                )
                for row in self._use.index(request.ready)
            ]
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One answer."""
        try:
            head, body = _packed(request)
            name, version = _required(request.model_name), request.model_version
            reply = await self._use.infer(name, version, body, _headers(context), _timeout_ms(context))
            return _response(self._use.answer_of(reply, head, name, version), bool(request.raw_input_contents))
        except Exception as error:
            await abort(context, error)
            raise

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answers in the order of the requests; an error is a message, after which the stream goes on."""
        accepted: asyncio.Queue[_Streamed | None] = asyncio.Queue()
        places = asyncio.Semaphore(STREAMED_AHEAD)
        reader = asyncio.create_task(self._accept(requests, context, accepted, places), name="read ModelStreamInfer")
        forget = self._use.on_drain(reader.cancel)
        current: _Streamed | None = None
        try:
            while (current := await accepted.get()) is not None:
                places.release()
                async for message in self._answers(current):
                    yield message
            await asyncio.wait([reader])
            if reader.cancelled():  # nobody reads what this client still has to say
                await abort(context, errors.Draining())
            elif (error := reader.exception()) is not None:
                logger.debug("a stream could not be read to its end: %s", error)
                await abort(context, errors.BadRequest("a message of the stream could not be read"))
        finally:
            forget()
            reader.cancel()
            left = [current, *(accepted.get_nowait() for _ in range(accepted.qsize()))]
            for streamed in left:  # a client that left takes its requests back
                if streamed is not None and streamed.request is not None:
                    streamed.request.cancel()
            await asyncio.wait([reader])

    async def _accept(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        context: Context,
        accepted: asyncio.Queue[_Streamed | None],
        places: asyncio.Semaphore,
    ) -> None:
        try:
            async for asked in requests:
                await places.acquire()
                accepted.put_nowait(self._submitted(asked, context))
        finally:  # whatever ends the reading, who answers must not wait for more
            accepted.put_nowait(None)

    def _submitted(self, asked: pb.ModelInferRequest, context: Context) -> _Streamed:
        try:
            head, body = _packed(asked)
            name = _required(asked.model_name)
            request = self._use.submit(name, asked.model_version, body, _headers(context), _timeout_ms(context))
        except Exception as error:
            return _Streamed(asked, {}, None, error)
        return _Streamed(asked, head, request)

    async def _answers(self, streamed: _Streamed) -> AsyncIterator[pb.ModelStreamInferResponse]:
        asked = streamed.asked
        try:
            if streamed.request is None:
                raise streamed.error or errors.Cancelled("the request was not accepted")
            is_stream = asked.parameters[WANTS_FINAL].bool_param if WANTS_FINAL in asked.parameters else False
            async for reply in streamed.request.replies():
                answer = self._use.answer_of(reply, streamed.head, asked.model_name, asked.model_version)
                response = _response(answer, bool(asked.raw_input_contents))
                is_stream = is_stream or reply.more
                if is_stream:
                    response.parameters[FINAL].bool_param = not reply.more
                yield pb.ModelStreamInferResponse(infer_response=response)
        except Exception as error:
            if not isinstance(error, errors.TorchdError):
                logger.error("internal error", exc_info=error)
            yield pb.ModelStreamInferResponse(
                error_message=grpc_status_of(error).message,
                infer_response=pb.ModelInferResponse(
                    id=asked.id, model_name=asked.model_name, model_version=asked.model_version
                ),
            )


def _required(name: str) -> str:
    if not name:
        raise errors.BadRequest("Parameter model_name is required.")
    return name


def _headers(context: Context) -> list[Header]:
    return [
        Header(name, value)
        for name, value in context.invocation_metadata() or ()
        if isinstance(value, str) and not name.startswith(_GRPC_METADATA)
    ]


def _timeout_ms(context: Context) -> int:
    remaining = context.time_remaining()
    return 0 if remaining is None else max(1, int(remaining * 1000))


def _packed(request: pb.ModelInferRequest) -> tuple[dict[str, Any], bytes]:
    """The request's head and the whole of it packed; BadRequest names the input that will not do."""
    raw = _raw_inputs(request)
    inputs = []
    for tensor, share in zip(request.inputs, raw, strict=True):
        parameters = {**_values(tensor.parameters), tensors.BINARY_SIZE: len(share)}
        shape = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        inputs.append({**shape, "parameters": parameters})
    head: dict[str, Any] = {"id": request.id, "model_name": request.model_name, "inputs": inputs}
    if request.parameters:
        head["parameters"] = _values(request.parameters)
    if request.outputs:
        head["outputs"] = [_requested(output) for output in request.outputs]
    return head, tensors.pack(head, raw)


def _raw_inputs(request: pb.ModelInferRequest) -> Sequence[bytes]:
    if request.raw_input_contents:
        if len(request.raw_input_contents) != len(request.inputs):
            raise errors.BadRequest(
                f"there are {len(request.inputs)} inputs and {len(request.raw_input_contents)} raw_input_contents; "
                "where raw contents are used, each input has one"
            )
        raw: Sequence[bytes] = request.raw_input_contents
    try:
        if not request.raw_input_contents:
            raw = [_raw_of_contents(tensor) for tensor in request.inputs]
        for tensor, share in zip(request.inputs, raw, strict=True):
            tensors.check_tensor(
                {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": {}}
            )
            tensors.check_size(tensor.name, tensor.datatype, tensor.shape, len(share))
    except tensors.TensorsInvalid as error:
        raise errors.BadRequest(str(error)) from error
    return raw


def _raw_of_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        known = tensor.datatype in tensors.DATATYPES
        why = (
            "has no typed contents; send raw_input_contents" if known else f"is none of {', '.join(tensors.DATATYPES)}"
        )
        raise tensors.TensorsInvalid(f"input {tensor.name!r}: datatype {tensor.datatype!r} {why}")
    try:
        return tensors.raw_of(tensor.datatype, getattr(tensor.contents, field))
    except tensors.TensorsInvalid as error:
        raise tensors.TensorsInvalid(f"input {tensor.name!r}: {error}") from error


def _requested(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> dict[str, Any]:
    parameters = _values(output.parameters)
    return {"name": output.name, **({"parameters": parameters} if parameters else {})}


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None and name != tensors.BINARY_SIZE:
            values[name] = getattr(parameter, choice)
    return values


def _response(answer: Answer, as_raw: bool) -> pb.ModelInferResponse:
    """Typed contents to a typed request, raw ones to a raw request or where a datatype has no typed form."""
    head = answer.head
    response = pb.ModelInferResponse(model_name=head["model_name"], model_version=head["model_version"], id=head["id"])
    _set(response.parameters, head.get("parameters"))
    as_raw = as_raw or any(tensor["datatype"] not in _FIELDS for tensor in head["outputs"])
    for tensor, raw in zip(head["outputs"], answer.raw, strict=True):
        output = response.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        _set(output.parameters, tensor.get("parameters"))
        if as_raw:
            response.raw_output_contents.append(bytes(raw))
        else:
            field = getattr(output.contents, _FIELDS[tensor["datatype"]])
            field.extend(tensors.values_of(tensor["datatype"], raw))
    return response


def _set(target: Any, values: Any) -> None:
    for name, value in values.items() if isinstance(values, dict) else ():
        if name == tensors.BINARY_SIZE:
            continue
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value if isinstance(value, str) else json.dumps(value)
