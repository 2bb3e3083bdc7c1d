"""What can go wrong, said by class. No codes here: surfaces/status.py maps each class to gRPC and HTTP.

TorchdError
|- BadRequest
 |- NotFound: ModelNotFound, VersionNotFound, UrlNotAllowed (RedirectNotAllowed),
 |            ArchiveNotFound (WorkflowArchiveNotFound), WorkflowNotFound
 |- ArchiveInvalid: WorkflowInvalid
 |- ArchiveExists
 |- DownloadFailed: DownloadTooLarge, DownloadTimeout
 |- DependenciesFailed
 |- ModelExists, DefaultVersionInUse, ModelApiDisabled, WorkflowExists, NodeInUse
 |- WorkflowNotRegistered
 |- NodeFailed: NodeOverloaded, NodeUnavailable, NodeTimeout
 |- Unauthorized: InvalidKey
 |- WrongScope
 |- Overloaded: QueueFull, TooManyWrongTokens, NoTicket, SequenceLimit (TooManySequences, SequenceFull)
 |- NotEnoughDevices
 |- SequenceEnded: SequenceClosed, SequenceLost
 |- Unavailable: NoWorker (NoWorkerToDescribe), Draining
|- ModelFailed
|- LoadFailed: OutOfMemory, SpawnFailed
|- DeadlineExceeded: DeadlineInQueue
|- Cancelled
|- HandlerFailed: HandlerExit, ResponseTooLarge, PredictionFailed
|  |- BadOutput: NoList, WrongCount, Unsendable
|- WorkerLost: WorkerDied, DeviceLost, WorkerTimeout, WorkerProtocolBroken
|- NotSupported
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NAMES_SHOWN = 10


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are beside them."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "nothing") + more


class TorchdError(Exception):
    """Base of every error a client can be told. `retry_after_seconds` is set where a retry makes sense."""

    retry_after_seconds: float | None = None

    @property
    def message(self) -> str:
        """One sentence for the client."""
        return str(self)


class BadRequest(TorchdError):
    """The request cannot be understood; the message names the field and what would do."""


class NotFound(TorchdError):
    """What was asked for is not here."""


class ModelNotFound(NotFound):
    """No model of this name is registered."""

    def __init__(self, model: str, known: Iterable[str] = ()) -> None:
        self.model = model
        super().__init__(f"Model not found: {model} (registered: {some_of(sorted(known))})")


class VersionNotFound(NotFound):
    """The model has no such version."""

    def __init__(self, model: str, version: str, known: Iterable[str]) -> None:
        self.model, self.version = model, version
        super().__init__(f"model '{model}' has no version '{version}'; it has {some_of(list(known))}")


class DefaultVersionNotFound(VersionNotFound):
    """The version that was to become the default is not there."""


class UrlNotAllowed(NotFound):
    """The archive lies where this server may not read."""


class RedirectNotAllowed(UrlNotAllowed):
    """An allowed URL leads on to one that is not, or redirects are not followed at all."""


class ArchiveNotFound(NotFound):
    """The model store has no such archive."""


class ArchiveInvalid(TorchdError):
    """The archive, its manifest or its model-config.yaml is not what it should be."""


class ArchiveExists(TorchdError):
    """A download would take the place of a file in the store."""

    def __init__(self, name: str) -> None:
        self.archive = name
        super().__init__(f"Model file already exists {name}")


class DownloadFailed(TorchdError):
    """The archive of an allowed URL did not come."""

    def __init__(self, url: str, why: str) -> None:
        self.url = url
        super().__init__(f"Failed to download archive from: {url} ({why})")


class DownloadTooLarge(DownloadFailed):
    """It is larger than archives may be."""


class DownloadTimeout(DownloadFailed):
    """It took too long, or stalled."""


class DependenciesFailed(TorchdError):
    """What an archive's requirements file asks for could not be installed."""

    def __init__(self, model: str, why: str) -> None:
        self.model = model
        super().__init__(f"Custom pip package installation failed for model {model}: {why}")


class WorkflowNotFound(NotFound):
    """No workflow of this name is registered."""

    def __init__(self, workflow: str, known: Iterable[str] = ()) -> None:
        self.workflow = workflow
        super().__init__(f"Workflow not found: {workflow} (registered: {some_of(sorted(known))})")


class WorkflowArchiveNotFound(ArchiveNotFound):
    """The workflow store has no such archive."""


class WorkflowInvalid(ArchiveInvalid):
    """The archive of a workflow, or its specification, is not what it should be."""


class WorkflowExists(TorchdError):
    """A workflow of this name is registered already."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        super().__init__(f"Workflow {workflow} is already registered.")


class WorkflowNotRegistered(TorchdError):
    """A node of the workflow could not be registered, so none is."""

    def __init__(self, workflow: str, failures: Sequence[str]) -> None:
        self.workflow = workflow
        super().__init__(f"Workflow {workflow} has failed to register. Failures: [{', '.join(failures)}]")


class NodeInUse(TorchdError):
    """The model is a node of a workflow and comes and goes with it."""

    def __init__(self, model: str, workflow: str) -> None:
        self.model, self.workflow = model, workflow
        super().__init__(f"model '{model}' is a node of workflow '{workflow}'; unregister the workflow")


class NodeFailed(TorchdError):
    """A node of a workflow gave no answer, so the workflow gives none."""

    def __init__(self, workflow: str, node: str, cause: TorchdError) -> None:
        self.workflow, self.node, self.cause = workflow, node, cause
        self.retry_after_seconds = cause.retry_after_seconds
        super().__init__(f"Error executing {node} of workflow '{workflow}': {cause}")


class NodeOverloaded(NodeFailed):
    """The node's queue was full."""


class NodeUnavailable(NodeFailed):
    """The node had no worker, or its worker died."""


class NodeTimeout(NodeFailed):
    """The node did not answer in its time."""


class ModelExists(TorchdError):
    """This version of the model is registered already."""

    def __init__(self, model: str, version: str) -> None:
        self.model, self.version = model, version
        super().__init__(f"Model version {version} is already registered for model {model}")


class DefaultVersionInUse(TorchdError):
    """The default version cannot go while others stay."""

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"Cannot remove default version for model {model}; make another version the default first")


class ModelApiDisabled(TorchdError):
    """Registering and unregistering through the API is switched off."""

    def __init__(self) -> None:
        super().__init__("Model API disabled: start the server with --enable-model-api to register models through it")


class Unauthorized(TorchdError):
    """No token was shown that this server knows, or one whose time is over."""


class InvalidKey(Unauthorized):
    """The same, and a token of another scope, as TorchServe says it."""

    def __init__(self, what: str = "Authorization") -> None:
        super().__init__(f"Token {what} failed. Token either incorrect, expired, or not provided correctly")


class WrongScope(TorchdError):
    """The token is good, but for something else."""

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"this token does not open the {wanted} calls; show the {wanted} token (`key_file.json` has it)"
        )


class Overloaded(TorchdError):
    """There is more work than the limits allow."""

    retry_after_seconds = 1.0
    # The version the client asked for; "" where the default was meant.
    named = ""


class QueueFull(Overloaded):
    """The queue of this model version has reached its limit."""

    def __init__(self, model: str, version: str, limit: int, named: str = "") -> None:
        self.model, self.version, self.limit, self.named = model, version, limit, named
        super().__init__(
            f"the queue of model '{model}' version {version} is full, its limit is {limit} waiting requests "
            "(jobQueueSize in model-config.yaml, job_queue_size for all models)"
        )


class TooManyWrongTokens(Overloaded):
    """Somebody tries tokens out."""

    def __init__(self) -> None:
        super().__init__("too many wrong tokens were shown; try again later, with the right one")


class NoTicket(Overloaded):
    """The model takes only what a worker can begin at once (useJobTicket), and every worker is busy."""

    def __init__(self, model: str, version: str, named: str = "") -> None:
        self.model, self.version, self.named = model, version, named
        super().__init__(f"every worker of model '{model}' version {version} is busy, and it lets nobody wait")


class NotEnoughDevices(TorchdError):
    """More devices are asked for than are free, and nobody else may use those that are lent."""


class SequenceLimit(Overloaded):
    """There are more sequences, or more requests of one, than the limits allow."""


class TooManySequences(SequenceLimit):
    """No further sequence can be opened."""

    def __init__(self, model: str, version: str, limit: int) -> None:
        self.model, self.version = model, version
        super().__init__(
            f"model '{model}' version {version} has {limit} open sequences, its limit "
            "(maxNumSequence in model-config.yaml); end one of them first"
        )


class SequenceFull(SequenceLimit):
    """So many requests of one sequence wait already."""

    def __init__(self, model: str, version: str, sequence: str, limit: int) -> None:
        self.model, self.version = model, version
        super().__init__(
            f"{limit} requests of sequence {sequence[:100]!r} of model '{model}' version {version} wait, its limit "
            "(maxSequenceJobQueueSize in model-config.yaml)"
        )


class SequenceEnded(TorchdError):
    """The sequence that this request belongs to is over."""

    how = "has ended"

    def __init__(self, model: str, version: str, sequence: str) -> None:
        self.model, self.version = model, version
        super().__init__(
            f"sequence {sequence[:100]!r} of model '{model}' version {version} {self.how}; begin it anew with the "
            "start header"
        )


class SequenceClosed(SequenceEnded):
    """It was ended, or closed because it was idle or open for too long."""

    how = "was ended or has expired"


class SequenceLost(SequenceEnded):
    """Its worker is gone, and with it the state the handler kept."""

    how = "has lost its state with its worker"


class Unavailable(TorchdError):
    """Not now, but perhaps soon."""

    retry_after_seconds = 1.0


class NoWorker(Unavailable):
    """The model has no worker, and none is wanted."""

    asked_for = "inference"

    def __init__(self, model: str, version: str, named: str = "") -> None:
        self.model, self.version = model, version
        # The version the client asked for; "" where the default answered.
        self.named = named
        super().__init__(f"model '{model}' version {version} has no worker; scale it to at least one")


class NoWorkerToDescribe(NoWorker):
    """The handler cannot be asked about itself: no worker has it."""

    asked_for = "describe"


class Draining(Unavailable):
    """The server, or this model, is finishing its work and takes no more."""

    def __init__(self, what: str = "the server") -> None:
        super().__init__(f"{what} is shutting down and takes no new requests")


class ModelFailed(TorchdError):
    """The model's workers failed too often; they are not started again by themselves."""

    def __init__(self, model: str, version: str, cause: str) -> None:
        self.model, self.version = model, version
        super().__init__(f"model '{model}' version {version} has failed and must be scaled or registered anew: {cause}")


class LoadFailed(TorchdError):
    """A worker could not load the model. `traceback` is for logs and for DescribeModel, not for strangers."""

    def __init__(self, message: str, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)


class OutOfMemory(LoadFailed):
    """There was not enough memory, on the host or on the device."""


class LoadOutOfMemory(OutOfMemory):
    """The same, while the model was loaded."""


class SpawnFailed(LoadFailed):
    """The machine had no room for another process: descriptors, memory, the number of processes."""


class DeadlineExceeded(TorchdError):
    """The deadline passed while the request was running."""


class DeadlineInQueue(DeadlineExceeded):
    """The deadline passed while the request waited; it was not run."""


class Cancelled(TorchdError):
    """The client has gone, or has taken its request back."""


class HandlerFailed(TorchdError):
    """The handler raised. `status` is an HTTP status the handler chose for it, or None."""

    def __init__(self, message: str, traceback: str = "", status: int | None = None) -> None:
        self.traceback = traceback
        self.status = status
        super().__init__(message)


class HandlerExit(HandlerFailed):
    """The handler called sys.exit()."""


class BadOutput(HandlerFailed):
    """The handler returned something that cannot be an answer."""


class NoList(BadOutput):
    """The handler returned no list of answers."""


class WrongCount(BadOutput):
    """The handler returned more or fewer answers than there were requests."""


class Unsendable(BadOutput):
    """The handler returned an object that has no form on the wire."""


class ResponseTooLarge(HandlerFailed):
    """The answer is over the limit for responses."""


class PredictionFailed(HandlerFailed):
    """The handler raised TorchServe's PredictionException, with a status of its own."""


class WorkerLost(TorchdError):
    """The worker went away with the request in its hands; whether it was executed is unknown."""


class WorkerDied(WorkerLost):
    """The worker process ended."""


class DeviceLost(WorkerLost):
    """The worker's device failed under the request, and the process that used it ends. `traceback` is for logs."""

    def __init__(self, message: str, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)


class WorkerTimeout(WorkerLost):
    """The worker did not answer in time and was killed."""


class WorkerProtocolBroken(WorkerLost):
    """The worker sent bytes that are not the protocol."""


class NotSupported(TorchdError):
    """This server does not do that."""
