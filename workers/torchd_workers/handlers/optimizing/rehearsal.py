"""Sends the archive's samples through a handler before its first client comes, and hears what its model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from inspect import isawaitable, isgenerator
from typing import Any

from torchd_protos.frames import Call, Part
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.handler import Handler
from torchd_workers.handlers.optimizing.outputs import NotComparable, Outputs, tensors_of
from torchd_workers.handlers.optimizing.samples import SamplesUnusable
from torchd_workers.headers import Headers
from torchd_workers.inputs import row_of

Hear = Callable[[Any], None]


class Rehearsal:
    """A handler, and the requests it is tried on. What it adds to metrics meanwhile goes nowhere, nor do its chunks."""

    def __init__(self, service: Any, handler: Handler, name: str, bodies: Sequence[bytes]) -> None:
        """`service` is the object that has the model, `name` the samples' in the archive."""
        self._service = service
        self._handler = handler
        self._name = name
        self._bodies = bodies
        # Whether rows hold what the JSON of a body says, or its bytes; None until the handler has taken one of them.
        self._decodes: bool | None = None

    @property
    def batch_size(self) -> int:
        """Requests that come together at most."""
        return max(1, int(self._handler.context.system_properties.get("batch_size") or 1))

    def outputs(self) -> Outputs:
        """What the model says to every sample; NotComparable if it cannot be heard."""
        heard: list[dict[str, Any]] = []
        # The parts of a micro-batched batch are heard in any order, so one goes at a time.
        part = getattr(getattr(self._service, "handle", None), "micro_batch_size", self.batch_size)
        size = min(self.batch_size, part, len(self._bodies))
        with self._listening(lambda output: heard.append(tensors_of(output))):
            self.run(size, len(self._bodies))
        if not heard:
            raise NotComparable("the handler calls neither its method inference nor self.model")
        return Outputs(len(self._bodies), heard)

    def run(self, batch_size: int, requests: int) -> None:
        """Sends so many requests in batches of this size, the samples over and over."""
        for first in range(0, requests, batch_size):
            places = [place % len(self._bodies) for place in range(first, min(first + batch_size, requests))]
            self._send(places)

    def _send(self, places: Sequence[int]) -> None:
        try:
            output = self._call(places, bool(self._decodes))
        except Exception as error:
            output = self._call_decoded(places, error)
        if self._decodes is None:
            self._decodes = False
        if isawaitable(output) or isgenerator(output):
            if hasattr(output, "close"):
                output.close()
            raise NotComparable("the handler is asynchronous")

    def _call_decoded(self, places: Sequence[int], error: Exception) -> Any:
        """Some handlers know only what clients send as application/json, and the server has read."""
        if self._decodes is None:
            with suppress(Exception):
                output = self._call(places, True)
                self._decodes = True
                return output
        which = f"{places[0] + 1}" if len(places) == 1 else f"{places[0] + 1} to {places[-1] + 1}"
        raise SamplesUnusable(
            f"the handler fails on sample {which} of {self._name}: {type(error).__name__}: {error}"
        ) from error

    def _call(self, places: Sequence[int], decode: bool) -> Any:
        context = self._handler.context
        parts = [Part("body", "application/json" if decode else "", self._bodies[place]) for place in places]
        context.begin(
            {index: f"sample {place + 1}" for index, place in enumerate(places)},
            [RequestProcessor(Headers([])) for _ in places],
            (),
        )
        with _quiet(context):
            return self._handler([row_of(Call(parts=[part]), decode) for part in parts])

    @contextmanager
    def _listening(self, hear: Hear) -> Iterator[None]:
        """To what `inference` returns, which is what the answers are made of; where there is none, to the model."""
        name = "inference" if callable(getattr(self._service, "inference", None)) else "model"
        own = vars(self._service).get(name)
        setattr(self._service, name, _Heard(getattr(self._service, name), hear))
        try:
            yield
        finally:
            if own is None:
                delattr(self._service, name)
            else:
                setattr(self._service, name, own)


class _Heard:
    """Something callable, with somebody who listens to what it returns."""

    def __init__(self, heard: Any, hear: Hear) -> None:
        self._heard = heard
        self._hear = hear

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._heard(*args, **kwargs)
        self._hear(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._heard, name)


@contextmanager
def _quiet(context: Context) -> Iterator[None]:
    """Nobody has asked, so nobody gets chunks or counts these requests."""
    send_chunk = context.send_chunk
    context.send_chunk = _to_nobody if send_chunk is not None else None
    try:
        with context.metrics.silence() if context.metrics is not None else nullcontext():
            yield
    finally:
        context.send_chunk = send_chunk


def _to_nobody(context: Context, index: int, chunk: Any) -> None:
    """Takes a chunk and gives it to nobody."""
