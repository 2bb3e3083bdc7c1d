"""The use cases of workflows: register, describe, list, unregister, and predict, which runs the graph.

A node is an ordinary model version, named `<workflow>__<node>`: its queue, its limits and its workers are those of
every model, so a workflow waits, is refused and fails as a single request would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torchd_protos.frames import Call, Header, Part, Reply
from torchd_server import errors
from torchd_server.clock import Clock
from torchd_server.inference import Inference
from torchd_server.management import MOST_LISTED, Management, RegisterModel
from torchd_server.registry import ModelRegistry
from torchd_server.settings import Limits, SettingInvalid, check_name
from torchd_server.store import UnpackedModel
from torchd_server.workflow_spec import SEPARATOR, Node, WorkflowSpec
from torchd_server.workflow_store import UnpackedWorkflow, WorkflowStore

logger = logging.getLogger(__name__)
FUNCTION_VERSION = "1.0"
# What a node asked once and did not get may come at the next try; the rest would only fail again, or make it worse.
_WORTH_A_RETRY = (errors.HandlerFailed, errors.WorkerLost, errors.NoWorker)
# They describe the client's body, and later nodes get another one.
_BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding", "expect"})


@dataclass(frozen=True, slots=True)
class RegisterWorkflow:
    """A register call; None means not given."""

    url: str
    workflow_name: str | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    s3_sse_kms: bool = False


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """A workflow as an operator sees it."""

    name: str
    url: str
    spec: WorkflowSpec


@dataclass(frozen=True, slots=True)
class WorkflowPage:
    """One page of a list; `next_token` is None on the last."""

    workflows: tuple[WorkflowStatus, ...]
    next_token: int | None


class _Workflow:
    """A registered workflow, and its calls that run."""

    def __init__(self, name: str, unpacked: UnpackedWorkflow, versions: Mapping[str, str]) -> None:
        self.name = name
        self.unpacked = unpacked
        # Node -> the version of its model.
        self.versions = versions
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def spec(self) -> WorkflowSpec:
        return self.unpacked.spec

    @property
    def status(self) -> WorkflowStatus:
        return WorkflowStatus(self.name, self.unpacked.source, self.spec)

    def enter(self) -> None:
        self.running += 1
        self.idle.clear()

    def leave(self) -> None:
        self.running -= 1
        if not self.running:
            self.idle.set()


class Workflows:
    """Which workflows there are, and their calls."""

    def __init__(
        self,
        store: WorkflowStore,
        management: Management,
        registry: ModelRegistry,
        inference: Inference,
        clock: Clock,
        limits: Limits,
        api_enabled: bool,
    ) -> None:
        self._store = store
        self._management = management
        self._registry = registry
        self._inference = inference
        self._clock = clock
        self._limits = limits
        self._api_enabled = api_enabled
        # None while it is being registered: its name is taken, and there is nothing to call yet.
        self._workflows: dict[str, _Workflow | None] = {}

    async def register(self, call: RegisterWorkflow) -> str:
        """Registers a workflow with all its nodes, or nothing at all; answers its name."""
        if not self._api_enabled:
            raise errors.ModelApiDisabled
        self._management.check_open()
        return await self._management.to_the_end(self._register(call))

    async def _register(self, call: RegisterWorkflow) -> str:
        unpacked = await self._store.fetch(call.url, call.s3_sse_kms)
        try:
            name = _checked_name(call.workflow_name or unpacked.name, unpacked.spec)
            if name in self._workflows:
                raise errors.WorkflowExists(name)
            if len(self._workflows) >= self._limits.models:
                raise errors.Overloaded(f"{len(self._workflows)} workflows are registered, which is the limit")
            self._workflows[name] = None
            try:
                versions = await self._register_nodes(name, call, unpacked)
            except BaseException:
                del self._workflows[name]
                raise
        except BaseException:
            await self._store.drop(unpacked)
            raise
        self._workflows[name] = _Workflow(name, unpacked, versions)
        logger.info("workflow %s registered with %d nodes", name, len(versions))
        return name

    async def _register_nodes(self, name: str, call: RegisterWorkflow, unpacked: UnpackedWorkflow) -> dict[str, str]:
        """All nodes at once, for each has a process to start; a single failure takes back all the others."""
        nodes = unpacked.spec.nodes
        changes = await asyncio.gather(
            *(self._register_node(name, node, call, unpacked) for node in nodes), return_exceptions=True
        )
        versions = {}
        failures = []
        for node, change in zip(nodes, changes, strict=True):
            if isinstance(change, str):
                versions[node.name] = change
            elif isinstance(change, errors.TorchdError):
                model = _model_name(name, node.name)
                failures.append(f"Workflow Node {model} failed to register. Details: {change}")
        if len(versions) == len(nodes):
            return versions
        await self._unregister_nodes(name, versions)
        for change in changes:
            if isinstance(change, BaseException) and not isinstance(change, errors.TorchdError):
                raise change
        raise errors.WorkflowNotRegistered(name, failures)

    async def _register_node(
        self, workflow: str, node: Node, call: RegisterWorkflow, unpacked: UnpackedWorkflow
    ) -> str:
        model = _model_name(workflow, node.name)
        settings = node.settings
        change = await self._management.register_node(
            workflow,
            RegisterModel(
                node.url,
                model_name=model,
                batch_size=settings.batch_size,
                max_batch_delay_ms=settings.max_batch_delay_ms,
                initial_workers=settings.max_workers,
                response_timeout=call.response_timeout,
                startup_timeout=call.startup_timeout,
                s3_sse_kms=call.s3_sse_kms,
            ),
            _function(model, node.name, unpacked) if node.is_function else None,
        )
        return change.version

    async def unregister(self, name: str) -> None:
        """Removes a workflow and its nodes: new calls find nothing at once, running ones finish first."""
        if not self._api_enabled:
            raise errors.ModelApiDisabled
        self._management.check_open()
        workflow = self._get(name)
        # The name stays taken until its models are gone, for they bear it.
        self._workflows[name] = None
        await self._management.to_the_end(self._end(workflow))
        logger.info("workflow %s unregistered", name)

    async def _end(self, workflow: _Workflow) -> None:
        try:
            await _idle(workflow, self._limits.unload_grace)
            await self._unregister_nodes(workflow.name, workflow.versions)
        finally:
            del self._workflows[workflow.name]
            await self._store.drop(workflow.unpacked)

    async def _unregister_nodes(self, name: str, versions: Mapping[str, str]) -> None:
        await asyncio.gather(
            *(self._management.unregister_node(_model_name(name, node), version) for node, version in versions.items())
        )

    def describe(self, name: str) -> WorkflowStatus:
        """One workflow; raises WorkflowNotFound."""
        return self._get(name).status

    def list(self, limit: int, token: int) -> WorkflowPage:
        """One page of the workflows by name; a limit outside 1 to 100 means 100."""
        size = limit if 0 < limit <= MOST_LISTED else MOST_LISTED
        first = max(0, token)
        names = self._names()
        page = tuple(self._get(name).status for name in names[first : first + size])
        return WorkflowPage(page, first + size if first + size < len(names) else None)

    async def predict(self, call: Call) -> Reply:
        """Runs the graph of workflow `call.model`; the answer is that of its leaf, or a JSON object of all leaves'.

        The first node that fails ends the call with its name and cancels the others; so does the client's leaving.
        """
        self._inference.admit(call)
        workflow = self._get(call.model)
        end = self._clock.time() + call.timeout_ms / 1000 if call.timeout_ms else math.inf
        workflow.enter()
        try:
            return Reply(status=200, body=_joined(workflow, await self._run(workflow, call, end)))
        finally:
            workflow.leave()

    async def drain(self, grace_seconds: float) -> None:
        """Waits until the running calls are answered, at most `grace_seconds`."""
        await asyncio.gather(
            *(_idle(workflow, grace_seconds) for workflow in self._workflows.values() if workflow is not None)
        )

    async def stop(self) -> None:
        """Removes what was unpacked; the nodes' workers end with all others."""
        for workflow in self._workflows.values():
            if workflow is not None:
                await self._store.drop(workflow.unpacked)

    async def _run(self, workflow: _Workflow, call: Call, end: float) -> dict[str, bytes]:
        answers: dict[str, asyncio.Task[bytes]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for node in workflow.spec.nodes:  # parents stand before their children
                    inputs = {parent: answers[parent] for parent in workflow.spec.parents[node.name]}
                    answers[node.name] = group.create_task(self._run_node(workflow, node, call, inputs, end))
        except BaseExceptionGroup as failed:
            # Several may fail at once; a child that waited for a failed parent repeats its error.
            raise failed.exceptions[0] from None
        return {leaf: answers[leaf].result() for leaf in workflow.spec.leaves}

    async def _run_node(
        self, workflow: _Workflow, node: Node, call: Call, inputs: Mapping[str, asyncio.Task[bytes]], end: float
    ) -> bytes:
        bodies = {parent: await answer for parent, answer in inputs.items()}
        request = _node_call(workflow, node, call, bodies)
        retries = node.settings.retry_attempts
        while True:
            left_ms = node.settings.timeout_ms
            if end < math.inf:
                left_ms = min(left_ms, max(1, int((end - self._clock.time()) * 1000)))
            try:
                return await self._ask(replace(request, timeout_ms=left_ms))
            except errors.TorchdError as error:
                if not retries or self._clock.time() >= end or not isinstance(error, _WORTH_A_RETRY):
                    raise _node_failed(workflow.name, node.name, error) from error
                retries -= 1

    async def _ask(self, call: Call) -> bytes:
        # Past the door that `predict` came in by: a call that was let in finishes, also while the server drains.
        replies = await self._registry.get(call.model, call.version).submit(call).answer(self._limits.response_bytes)
        status = replies[-1].status
        if status >= 400:
            raise errors.HandlerFailed(f"the handler answered with status {status}", status=status)
        return b"".join(bytes(reply.body) for reply in replies)

    def _get(self, name: str) -> _Workflow:
        workflow = self._workflows.get(name)
        if workflow is None:
            raise errors.WorkflowNotFound(name, self._names())
        return workflow

    def _names(self) -> Sequence[str]:
        return sorted(name for name, workflow in self._workflows.items() if workflow is not None)


def _model_name(workflow: str, node: str) -> str:
    return f"{workflow}{SEPARATOR}{node}"


def _checked_name(name: str, spec: WorkflowSpec) -> str:
    try:
        check_name("workflow name", name)
        for node in spec.nodes:
            check_name("model name of a node", _model_name(name, node.name))
    except SettingInvalid as error:
        raise errors.BadRequest(str(error)) from error
    return name


def _function(model: str, function: str, unpacked: UnpackedWorkflow) -> UnpackedModel:
    """A function of the workflow's handler file as a model of its own."""
    manifest = {"model": {"modelName": model, "modelVersion": FUNCTION_VERSION, "handler": unpacked.handler}}
    return UnpackedModel(
        source="",
        directory=unpacked.directory,
        model_name=model,
        version=FUNCTION_VERSION,
        handler=f"{unpacked.handler}:{function}",
        runtime="python",
        config={},
        config_json="{}",
        manifest_json=json.dumps(manifest),
        is_ours=False,  # the workflow's folder, which goes with the workflow
    )


def _node_call(workflow: _Workflow, node: Node, call: Call, bodies: Mapping[str, bytes]) -> Call:
    """What a node is asked: the client's own input at the start, then the answers of its parents."""
    headers = call.headers
    parts = call.parts
    if bodies:
        headers = [header for header in headers if header.name.lower() not in _BODY_HEADERS]
        names = ("body",) if len(bodies) == 1 else tuple(bodies)
        parts = [Part(name, "", body) for name, body in zip(names, bodies.values(), strict=True)]
    return Call(
        model=_model_name(workflow.name, node.name),
        version=workflow.versions[node.name],
        request_id=call.request_id,
        headers=[*(header for header in headers if header.name != "explain"), Header("explain", "False")],
        parts=parts,
    )


def _node_failed(workflow: str, node: str, cause: errors.TorchdError) -> errors.NodeFailed:
    match cause:
        case errors.Overloaded():
            return errors.NodeOverloaded(workflow, node, cause)
        case errors.DeadlineExceeded() | errors.WorkerTimeout():
            return errors.NodeTimeout(workflow, node, cause)
        case errors.Unavailable() | errors.WorkerLost() | errors.ModelFailed() | errors.NotFound():
            return errors.NodeUnavailable(workflow, node, cause)
        case _:
            return errors.NodeFailed(workflow, node, cause)


def _joined(workflow: _Workflow, answers: Mapping[str, bytes]) -> bytes:
    """One leaf's answer as it is; several as a JSON object of them."""
    if len(answers) == 1:
        return next(iter(answers.values()))
    found = {}
    for leaf, body in answers.items():
        try:
            found[leaf] = json.loads(body)
        except (ValueError, RecursionError) as error:
            cause = errors.BadOutput(
                f"its answer is not JSON, which the leaves of a graph with several must be: {error}"
            )
            raise errors.NodeFailed(workflow.name, leaf, cause) from error
    return f"{json.dumps(found, indent=2)}\n".encode()


async def _idle(workflow: _Workflow, grace_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds):
            await workflow.idle.wait()
