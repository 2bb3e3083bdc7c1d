"""The blocking client of a torchd daemon."""

from __future__ import annotations

import builtins  # the class has a method called `list`
from collections.abc import Generator
from contextlib import closing
from typing import Self

import grpc

from torchd_clients import calls
from torchd_clients.calls import Answer, Call, Data
from torchd_clients.connection import Connection, Metadata
from torchd_clients.errors import DeadlineExceeded
from torchd_protos.management_pb2 import ListDevicesResponse, ModelChange, ModelDescription, ModelSummary


class Client(Connection):
    """Calls a daemon and waits for its answers. Threads may share one client; its channels are opened once."""

    _open_channel = staticmethod(grpc.insecure_channel)
    _open_secure_channel = staticmethod(grpc.secure_channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels; calls that still run end with Cancelled."""
        for channel in self._channels.values():
            channel.close()

    def predict(
        self,
        model: str,
        data: Data,
        *,
        version: str | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> bytes:
        """One request to a model. `data` is the whole input (part "data" to the handler), or its parts by name."""
        return self._unary(calls.predict(model, data, version), timeout, metadata)

    def stream(
        self,
        model: str,
        data: Data,
        *,
        version: str | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> Generator[bytes, None, None]:
        """The chunks of a model's answer as they come; sent at the first `next`, cancelled by `close`."""
        return self._stream(calls.stream(model, data, version), timeout, metadata)

    def register(
        self,
        url: str,
        *,
        model_name: str | None = None,
        initial_workers: int = 1,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        response_timeout: int | None = None,
        startup_timeout: int | None = None,
        handler: str | None = None,
        runtime: str | None = None,
        synchronous: bool = True,
        timeout: float | None = None,
    ) -> ModelChange:
        """Registers an archive of the daemon's model store; what is None (or 0) is left to the archive and the daemon.

        Args:
            url: File name of the archive in the model store.
            max_batch_delay: Milliseconds; response_timeout and startup_timeout are seconds.
            synchronous: Whether to come back only when the workers are ready.
            timeout: Seconds for this call.
        """
        call = calls.register(
            url,
            model_name,
            initial_workers,
            batch_size,
            max_batch_delay,
            response_timeout,
            startup_timeout,
            handler,
            runtime,
            synchronous,
        )
        return self._unary(call, timeout)

    def scale(
        self,
        model: str,
        min_worker: int,
        max_worker: int | None = None,
        *,
        version: str | None = None,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        synchronous: bool = True,
        timeout: float | None = None,
    ) -> ModelChange:
        """Changes how many workers serve a model, 0 stops them all; and where given its batches (delay in ms)."""
        call = calls.scale(model, min_worker, max_worker, version, synchronous, batch_size, max_batch_delay)
        return self._unary(call, timeout)

    def describe(
        self, model: str, version: str | None = None, *, timeout: float | None = None
    ) -> builtins.list[ModelDescription]:
        """The default version of a model, the version named, or with "all" every one."""
        return self._unary(calls.describe(model, version), timeout)

    def list(self, *, timeout: float | None = None) -> builtins.list[ModelSummary]:
        """Every registered model; `timeout` is for each page of 100."""
        page = self._unary(calls.list_page(0), timeout)
        summaries = [*page.summaries]
        while page.HasField("next_page_token"):
            page = self._unary(calls.list_page(page.next_page_token), timeout)
            summaries += page.summaries
        return summaries

    def devices(self, *, timeout: float | None = None) -> ListDevicesResponse:
        """The devices of the daemon's machine, who holds which, and why there are no others."""
        return self._unary(calls.devices(), timeout)

    def set_default(self, model: str, version: str, *, timeout: float | None = None) -> ModelChange:
        """Makes one version of a model its default."""
        return self._unary(calls.set_default(model, version), timeout)

    def unregister(self, model: str, version: str | None = None, *, timeout: float | None = None) -> ModelChange:
        """Removes one version of a model, after its requests have been answered."""
        return self._unary(calls.unregister(model, version), timeout)

    def ping(self, *, timeout: float | None = None) -> str:
        """The health of all models in a word: "Healthy" if each has the workers it should have, else "Unhealthy"."""
        return self._unary(calls.ping(), timeout)

    def wait_ready(self, model: str | None = None, *, version: str | None = None, timeout: float | None = None) -> None:
        """Waits until the daemon, or one of its models, is ready; neither has to be there yet."""
        call = calls.watch(model, version)
        last = None
        try:
            with closing(self._stream(call, timeout, wait_for_daemon=True)) as statuses:
                for last in statuses:
                    if last == calls.SERVING:
                        return
        except DeadlineExceeded as error:
            raise self._not_ready(call, timeout, last) from error
        raise self._watch_ended()

    def _unary(self, call: Call[Answer], timeout: float | None, metadata: Metadata | None = None) -> Answer:
        try:
            return call.read(self._start(call, timeout, metadata))
        except grpc.RpcError as error:
            raise self._error(call, timeout, error) from error

    def _stream(
        self,
        call: Call[Answer],
        timeout: float | None,
        metadata: Metadata | None = None,
        *,
        wait_for_daemon: bool = False,
    ) -> Generator[Answer, None, None]:
        messages = self._start(call, timeout, metadata, wait_for_daemon=wait_for_daemon)
        try:
            for message in messages:
                yield call.read(message)
        except grpc.RpcError as error:
            raise self._error(call, timeout, error) from error
        finally:
            messages.cancel()
