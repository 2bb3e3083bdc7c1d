"""What a handler sees beside its data: TorchServe's Context and RequestProcessor, with what torchd adds to them.

One Context lives as long as its worker; handlers keep attributes of their own on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from torchd_protos.frames import Call, LazyHeaders
from torchd_protos.tensors import CONTENT_TYPE as TENSORS
from torchd_workers.channel import RunningRequest
from torchd_workers.inputs import headers_of
from torchd_workers.metrics import Metrics

if TYPE_CHECKING:  # a worker that is alone does not import it
    from torchd_workers.group import Group

# The version that handlers written for TorchServe ask for.
TORCHSERVE_VERSION = "0.12.0"

# What stands for the call of a request that came without one.
NO_CALL = Call()

_PROGRESS_CHARACTERS = 1024


class RequestProcessor:
    """The headers of one request and what its handler has chosen for the response."""

    def __init__(self, request_header: Mapping[str, Any] | None = None, call: Call = NO_CALL) -> None:
        """Its headers are those of `call`, cut out when they are asked for, if they are not given."""
        self._given_header = request_header
        self._call = call
        self._status_code = 200
        self._reason_phrase: str | None = None
        self._response_header: dict[str, str] = {}

    @property
    def _request_header(self) -> Mapping[str, Any]:
        if self._given_header is None:
            self._given_header = headers_of(self._call)
        return self._given_header

    @property
    def is_plain(self) -> bool:
        """Whether the response is its body and nothing else, as far as the handler has said."""
        return self._status_code == 200 and not self._reason_phrase and not self._response_header

    @property
    def wants_tensors(self) -> bool:
        """Whether the answer is to be packed tensors."""
        headers = self._call.headers
        if self._given_header is None and isinstance(headers, LazyHeaders) and not headers.mentions(TENSORS):
            return False
        return bool(self.get_request_property("accept") == TENSORS)

    def get_request_property(self, key: str) -> Any:
        """One request header, or None."""
        return self._request_header.get(key)

    def get_request_properties(self) -> Mapping[str, Any]:
        """All request headers."""
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Sets the HTTP status of the response."""
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        """The HTTP status of the response."""
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        """The reason phrase of the response."""
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Sets one response header."""
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, str]:
        """All response headers."""
        return self._response_header

    def get_response_header(self, key: str) -> str | None:
        """One response header, or None."""
        return self._response_header.get(key)


class Context:
    """The model a handler serves, and the requests of the batch it is called with."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        batch_size: int,
        gpu: int | None,
        mms_version: str = TORCHSERVE_VERSION,
        limit_max_image_pixels: bool = True,
        metrics: Metrics | None = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = model_yaml_config or {}
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.request_ids: dict[int, str] | None = None
        self.request_processor: Sequence[RequestProcessor] = [RequestProcessor({})]
        self.metrics = metrics
        self.stopping_criteria: list[Any] | None = None
        self.header_key_sequence_id = "ts_request_sequence_id"
        self.header_key_sequence_start = "ts_request_sequence_start"
        self.header_key_sequence_end = "ts_request_sequence_end"
        # TorchServe's socket to its frontend; here nobody but the channel writes to the socket.
        self.cl_socket: None = None
        # Sends one chunk for the request at an index (streaming.py); None where nothing can be streamed.
        self.send_chunk: Callable[[Context, int, Any], None] | None = None
        self.running: Sequence[RunningRequest] = ()
        # Whether rows come out of a service envelope: there may be more or fewer of them than requests.
        self.enveloped = False
        # The processes that are one worker together; None where it is alone.
        self.group: Group | None = None
        # Of each request whether it is cancelled and its seconds left, as the leader of the group last said it.
        self._announced: Sequence[tuple[bool, float]] | None = None
        # What `optimize:` did to the model, as JSON; empty where nothing was asked for.
        self.optimization_json = ""
        # Sends how far loading is; None where nobody loads.
        self.send_progress: Callable[[int, str], None] | None = None

    def begin(
        self, request_ids: dict[int, str], processors: Sequence[RequestProcessor], running: Sequence[RunningRequest]
    ) -> None:
        """Turns to a new batch."""
        self.request_ids = request_ids
        self.request_processor = processors
        self.running = running
        self._announced = None
        if self.metrics is not None:
            self.metrics.set_request_ids(request_ids)

    def for_request(self, request_ids: dict[int, str], processor: RequestProcessor, running: RunningRequest) -> Context:
        """A context for one request that runs beside others; what handlers keep on the context is shared."""
        own = copy(self)
        own.metrics = copy(self.metrics)
        own.begin(request_ids, [processor], [running])
        return own

    def agree(self) -> None:
        """In a group: brings what the leader knows of its requests to every rank; each calls this at the same point.

        From then on `is_cancelled` and `time_remaining` answer the same on every rank, until the next time. Where the
        worker is alone this does nothing, and they answer what is true at the moment.
        """
        if self.group is not None:
            now = [(request.cancelled, request.time_remaining()) for request in self.running]
            self._announced = self.group.share(now)

    def report_progress(self, percent: float, text: str = "") -> None:
        """Tells the daemon how far loading is, for its log and who describes the model; once loaded, does nothing."""
        if self.send_progress is not None:
            self.send_progress(max(0, min(100, int(percent))), text[:_PROGRESS_CHARACTERS])

    def is_cancelled(self, idx: int = 0) -> bool:
        """Whether nobody waits for the answer to this request any more; in a group as of the last `agree`."""
        if self._announced is not None:
            return idx < len(self._announced) and self._announced[idx][0]
        return idx < len(self.running) and self.running[idx].cancelled

    def time_remaining(self, idx: int = 0) -> float:
        """Seconds until this request's deadline, never negative; infinite outside a batch; in a group as of `agree`."""
        if self._announced is not None:
            return self._announced[idx][1] if idx < len(self._announced) else math.inf
        return self.running[idx].time_remaining() if idx < len(self.running) else math.inf

    def get_request_id(self, idx: int = 0) -> str | None:
        """The id clients and logs know the request by."""
        return self.request_ids.get(idx) if self.request_ids else None

    def get_request_header(self, idx: int, key: str) -> Any:
        """One header of a request, its name in any case, or None."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        """All headers of a request."""
        return self.request_processor[idx].get_request_properties()

    def get_sequence_id(self, idx: int) -> Any:
        """The id of the sequence a request belongs to, or None."""
        return self.get_request_header(idx, self.header_key_sequence_id)

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Sets the media type of a response."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """The media type of a response, if one was set."""
        return self.request_processor[idx].get_response_header("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Sets one header of a response."""
        self.request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """All headers of a response."""
        return self.request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Sets the HTTP status and the reason phrase of a response."""
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Sets the HTTP status and the reason phrase of every response of the batch."""
        for processor in self.request_processor:
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        """The HTTP status and the reason phrase of a response."""
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()
