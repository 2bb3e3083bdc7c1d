"""Continuous batching as TorchServe's documentation shows it: one piece for each request and call."""

from __future__ import annotations

import json
from typing import Any

from ts.context import Context


class Continuous:
    """Each request says how many pieces it wants; the handler keeps what it has said of each."""

    def initialize(self, context: Context) -> None:
        """Nobody is served yet."""
        self.context = context
        self.context.cache = {}

    def handle(self, data: list[Any], context: Context) -> Any:
        """One step for each request that is live."""
        return self.postprocess([self._step(data[index], index) for index in range(len(data))])

    def postprocess(self, said: list[str]) -> Any:
        """Tells the server which of them go on."""
        self.context.stopping_criteria = [self._criterion(key) for key in self.context.request_ids.values()]
        return said

    def _step(self, row: Any, index: int) -> str:
        key = self.context.get_request_id(index)
        if key not in self.context.cache:
            body = row.get("data") or row.get("body")
            wish = body if isinstance(body, dict) else json.loads(bytes(body))
            self.context.cache[key] = {"left": int(wish["pieces"]), "said": 0}
        state = self.context.cache[key]
        state["said"] += 1
        state["left"] -= 1
        return f"piece {state['said']} "

    def _criterion(self, key: str) -> Any:
        def is_over(said: str) -> bool:
            over = self.context.cache[key]["left"] <= 0
            if over:
                del self.context.cache[key]
            return bool(over)

        return is_over
