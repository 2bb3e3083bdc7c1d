"""ManagementAPIsService over gRPC: TorchServe's `msg` and the same content typed beside it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from torchd_protos import management_pb2 as pb
from torchd_protos.management_pb2_grpc import ManagementAPIsServiceServicer
from torchd_server import errors
from torchd_server.management import RECONFIGURABLE, Management, ModelChange, RegisterModel
from torchd_server.model import VersionStatus
from torchd_server.surfaces import devices, optimization
from torchd_server.surfaces.status import abort
from torchd_server.torchserve import words

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
R = TypeVar("R")
A = TypeVar("A")
Method = Callable[[Any, R, Context], Awaitable[A]]


def _answers_errors(method: Method[R, A]) -> Method[R, A]:
    """The door of this surface: every error leaves with its status."""

    async def call(self: Any, request: R, context: Context) -> A:
        try:
            return await method(self, request, context)
        except Exception as error:
            await abort(context, error)
            raise

    return call


class ManagementSurface(ManagementAPIsServiceServicer):
    """Translates; `Management` decides. Zero and empty stand for "not given", as TorchServe has it."""

    def __init__(self, management: Management) -> None:
        self._management = management

    @_answers_errors
    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Context) -> pb.ManagementResponse:
        """Registers a model."""
        change = await self._management.register(
            RegisterModel(
                url=request.url,
                model_name=request.model_name or None,
                handler=request.handler or None,
                runtime=request.runtime or None,
                batch_size=request.batch_size or None,
                max_batch_delay_ms=request.max_batch_delay or None,
                initial_workers=request.initial_workers or None,
                response_timeout=request.response_timeout or None,
                startup_timeout=request.startup_timeout or None,
                synchronous=request.synchronous,
                s3_sse_kms=request.s3_sse_kms,
            )
        )
        return _changed(words.registered(change), change)

    @_answers_errors
    async def ScaleWorker(self, request: pb.ScaleWorkerRequest, context: Context) -> pb.ManagementResponse:
        """Changes the number of workers, or the settings of a living model."""
        name, version = _required(request.model_name), request.model_version
        changes = {
            setting: getattr(request, field) for field, setting in RECONFIGURABLE.items() if request.HasField(field)
        }
        if changes:
            changed = self._management.reconfigure(name, version, changes)
            if not request.HasField("min_worker") and not request.max_worker:
                return _changed(words.reconfigured(changed, changes), changed)
        change = await self._management.scale(
            name,
            version,
            request.min_worker if request.HasField("min_worker") else None,
            request.max_worker or None,
            request.synchronous,
        )
        return _changed(words.scaled(change), change)

    @_answers_errors
    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Context) -> pb.ManagementResponse:
        """Describes versions."""
        name, version = _required(request.model_name), request.model_version
        versions = self._management.describe(name, version)
        document = words.descriptions(versions)
        models = [_description(version) for version in versions]
        if request.customized and version != "all":
            metadata = await self._management.customized(name, version)
            if metadata is not None:
                document[0]["customizedMetadata"] = metadata
                models[0].customized_metadata = json.dumps(metadata)
        return pb.ManagementResponse(msg=json.dumps(document, indent=2), models=models)

    @_answers_errors
    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ManagementResponse:
        """Lists models."""
        page = self._management.list(request.limit, request.next_page_token)
        return pb.ManagementResponse(
            msg=json.dumps(words.page(page), indent=2),
            summaries=[pb.ModelSummary(model_name=model.name, model_url=model.url) for model in page.models],
            next_page_token=page.next_token,
        )

    @_answers_errors
    async def SetDefault(self, request: pb.SetDefaultRequest, context: Context) -> pb.ManagementResponse:
        """Sets the default version."""
        change = self._management.set_default(_required(request.model_name), request.model_version)
        return _changed(words.default_set(change), change)

    @_answers_errors
    async def UnregisterModel(self, request: pb.UnregisterModelRequest, context: Context) -> pb.ManagementResponse:
        """Removes a version."""
        change = await self._management.unregister(_required(request.model_name), request.model_version)
        return _changed(words.unregistered(change), change)

    @_answers_errors
    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        """Lists the devices."""
        return devices.message(self._management.devices())


def _required(model_name: str) -> str:
    if not model_name:
        raise errors.BadRequest("Parameter model_name is required.")
    return model_name


def _changed(sentence: str, change: ModelChange) -> pb.ManagementResponse:
    return pb.ManagementResponse(
        msg=sentence,
        change=pb.ModelChange(
            model_name=change.model,
            model_version=change.version,
            ready_workers=change.ready,
            wanted_workers=change.wanted,
            done=change.done,
        ),
    )


def _description(status: VersionStatus) -> pb.ModelDescription:
    settings = status.settings
    description = pb.ModelDescription(
        model_name=status.name,
        model_version=status.version,
        model_url=status.source,
        runtime=settings.runtime,
        min_workers=settings.min_workers,
        max_workers=settings.max_workers,
        batch_size=settings.batch_size,
        max_batch_delay=settings.max_batch_delay_ms,
        response_timeout=settings.response_timeout,
        startup_timeout=settings.startup_timeout,
        batch_wait=settings.batch_wait,
        loaded_at_startup=status.loaded_at_startup,
        is_default=status.is_default,
        state=f"MODEL_STATE_{status.state.value.upper()}",
        pending_requests=status.pending,
        remaining_capacity=status.remaining,
        device_type=status.device_type,
        workers=[
            pb.WorkerDescription(
                id=worker.name,
                start_time=words.timestamp(worker.started_at),
                state=f"WORKER_STATE_{worker.state.upper()}",
                pid=worker.pid,
                memory_usage=worker.memory_bytes,
                gpu=worker.gpu is not None,
                gpu_usage="N/A" if worker.gpu is None else f"gpuId::{worker.gpu}",
                threads=worker.threads,
                running_requests=worker.running,
                progress=worker.progress,
                devices=devices.references(worker.devices),
                ranks=[devices.rank(rank) for rank in worker.ranks],
            )
            for worker in status.workers
        ],
    )
    if status.optimization_json:
        description.optimization.CopyFrom(optimization.message(status.optimization_json))
    if status.last_failure is not None:
        last = words.failure(status)
        description.last_failure.CopyFrom(pb.FailureDescription(worker_id=last.pop("worker"), **last))
    return description
