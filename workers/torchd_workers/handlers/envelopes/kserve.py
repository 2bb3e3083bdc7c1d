"""The envelope `kserve`: KServe's first protocol, {"instances": [...]} and {"predictions": ...}."""

from __future__ import annotations

from typing import Any

from torchd_workers.handlers.envelopes.base import BaseEnvelope, alone, body_of, field_of, is_explain, split


class KServeEnvelope(BaseEnvelope):
    """The handler gets the instances of all requests as one batch. (TorchServe reads the first request only.)"""

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        self._sizes: list[int] = []

    def handle(self, data: Any, context: Any) -> Any:
        """Answers one batch; beside a request for an explanation every request is alone."""
        if data and len(data) > 1 and any(is_explain(context, row) for row in range(len(data))):
            return [self.handle([data[row]], alone(context, row))[0] for row in range(len(data))]
        return super().handle(data, context)

    def parse_input(self, data: Any) -> list[Any]:
        """The instances of all requests."""
        by_request = [field_of(body_of(row), "instances") for row in data]
        self._sizes = [len(instances) for instances in by_request]
        return [instance for instances in by_request for instance in instances]

    def format_output(self, data: Any) -> list[dict[str, Any]]:
        """One object per request."""
        name = "explanations" if is_explain(self.context, 0) else "predictions"
        # A request alone gets whatever the handler said, as many as that may be.
        parts = [data] if len(self._sizes) == 1 else split(data, self._sizes)
        return [{name: part} for part in parts]
