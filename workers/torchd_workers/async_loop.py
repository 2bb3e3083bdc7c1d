"""Async handlers: every request is a task of its own, as many at once as the daemon sends.

The event loop is made before the model is loaded, so that an engine started in `initialize` lives on it. Frames are
read by a second thread; everything else happens on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from inspect import isawaitable
from threading import Thread
from time import perf_counter
from typing import Any

from torchd_protos.frames import Batch, Item, Load, Message, Settings
from torchd_workers.aftermath import recover
from torchd_workers.answers import Answer, Answers, raise_if_over
from torchd_workers.channel import Channel, RunningRequest
from torchd_workers.context import RequestProcessor
from torchd_workers.device import ComputeThreads
from torchd_workers.failures import Cancelled
from torchd_workers.handler import Handler
from torchd_workers.inputs import row_of
from torchd_workers.outputs import checked_list


class AsyncLoop:
    """The event loop of one worker and the requests that run on it. Make it before the handler is loaded."""

    def __init__(self, channel: Channel, load: Load, threads: ComputeThreads) -> None:
        self._channel = channel
        self._load = load
        self._threads = threads
        self._answers = Answers(load)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        # The message that ends the serving.
        self._last: asyncio.Future[Message] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, handler: Handler) -> Message:
        """Serves until it is told to stop; gives the message that is not a batch nor a setting."""
        Thread(target=self._receive, args=(handler,), name="torchd-receiver", daemon=True).start()
        return self._loop.run_until_complete(self._last)

    def _receive(self, handler: Handler) -> None:
        while True:
            message = self._channel.receive()
            self._loop.call_soon_threadsafe(self._take, handler, message)
            if not isinstance(message, Batch | Settings):
                return

    def _take(self, handler: Handler, message: Message) -> None:
        match message:
            case Batch():
                self._threads.apply()
                self._channel.begin(message.step)
                for request, item in zip(self._channel.requests(message), message.items, strict=True):
                    self._start(handler, request, item)
            case Settings(threads=count):
                self._threads.change(count)
            case _:
                self._last.set_result(message)

    def _start(self, handler: Handler, request: RunningRequest, item: Item) -> None:
        task = self._loop.create_task(self._serve(handler, request, item), name=f"request {request.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Called by the thread that reads; by then the task has been entered, so it is there to say what it ended with.
        request.on_cancel = partial(self._loop.call_soon_threadsafe, task.cancel)
        if request.cancelled:
            self._loop.call_soon(task.cancel)

    async def _serve(self, handler: Handler, request: RunningRequest, item: Item) -> None:
        """One call of the handler; its answer, whatever happens."""
        processor = RequestProcessor(None, item.call)
        ids = {0: item.call.request_id}
        started = perf_counter()
        try:
            raise_if_over(request)
            context = handler.context.for_request(ids, processor, request)  # copies what the handler has put there
            output = handler.entry([row_of(item.call, self._load.decode_input)], context)
            [value] = checked_list(await _settled(output), 1)
            answer: Answer = self._answers.of_value(request, value, processor)
        except asyncio.CancelledError as error:
            gone = Cancelled("the client is gone")
            answer = self._answers.of_error(request, gone if request.cancelled else error)
        except BaseException as error:  # user code may raise anything, and SystemExit would end the loop
            answer = self._answers.of_error(request, error)
        self._channel.end(request, answer)
        self._channel.send(self._answers.prediction_time(perf_counter() - started, ids))
        recover(self._channel, [answer])


async def _settled(output: Any | Awaitable[Any]) -> Any:
    """A handler that is no coroutine has its output at once."""
    return await output if isawaitable(output) else output
