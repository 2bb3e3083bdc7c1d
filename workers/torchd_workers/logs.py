"""The handler's logging on its way to the daemon."""

from __future__ import annotations

import logging
from itertools import islice
from time import monotonic

from torchd_protos.frames import Log
from torchd_workers.channel import Channel
from torchd_workers.context import Context

TEXT_CHARACTERS = 16 * 1024
RECORDS_PER_SECOND = 1000
# Of a big batch the first requests are named.
REQUESTS_NAMED = 8


class LogForwarder(logging.Handler):
    """Sends records as Log frames; what exceeds RECORDS_PER_SECOND is dropped, counted, and the count is sent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._context: Context | None = None
        self._second = 0
        self._sent = 0
        self._dropped = 0

    def follow(self, context: Context) -> None:
        """From now on records name the requests that the context is at."""
        self._context = context

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for each record."""
        try:
            if self._has_room():
                text = self.format(record)[:TEXT_CHARACTERS]
                self._channel.send(Log(max(0, int(record.levelno)), record.name, text, self._request_ids()))
        except Exception:  # a record whose text cannot be made is its author's, and goes to stderr
            self.handleError(record)

    def _request_ids(self) -> str:
        context = self._context
        if context is None or not context.request_ids or all(request.finished for request in context.running):
            return ""
        more = len(context.request_ids) - REQUESTS_NAMED
        named = ",".join(islice(context.request_ids.values(), REQUESTS_NAMED))
        return f"{named} and {more} more" if more > 0 else named

    def _has_room(self) -> bool:
        now = int(monotonic())
        if now != self._second:
            self._second, self._sent = now, 0
            if self._dropped:
                text = f"{self._dropped} log records dropped: more than {RECORDS_PER_SECOND} in one second"
                self._channel.send(Log(logging.WARNING, __name__, text))
                self._dropped = 0
        self._sent += 1
        if self._sent > RECORDS_PER_SECOND:
            self._dropped += 1
            return False
        return True
