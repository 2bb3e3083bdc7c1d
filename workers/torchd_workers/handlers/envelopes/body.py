"""The envelope `body`: the handler gets the bodies alone."""

from __future__ import annotations

from typing import Any

from torchd_workers.handlers.envelopes.base import BaseEnvelope


class BodyEnvelope(BaseEnvelope):
    """The part "data" or "body" of each request; answers stay as they are."""

    def parse_input(self, data: Any) -> Any:
        """The bodies."""
        return [row.get("data") or row.get("body") for row in data]

    def format_output(self, data: Any) -> Any:
        """The answers."""
        return data
