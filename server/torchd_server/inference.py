"""The use cases of inference: predict, stream, ping. Every surface calls these and nothing below them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from torchd_protos.frames import Call, Reply
from torchd_server import errors
from torchd_server.registry import ModelRegistry
from torchd_server.request import Request
from torchd_server.settings import Limits

DEFAULT_LIMITS = Limits()


class Inference:
    """Runs calls. While the server drains, new ones are refused and accepted ones finish."""

    def __init__(self, registry: ModelRegistry, limits: Limits = DEFAULT_LIMITS) -> None:
        self._registry = registry
        self._limits = limits
        self._draining = False

    def drain(self) -> None:
        """Refuses every new call from now on."""
        self._draining = True

    def submit(self, call: Call) -> Request:
        """Accepts a call or refuses it at once."""
        if self._draining:
            raise errors.Draining
        if not call.model:
            raise errors.BadRequest("Parameter model_name is required.")
        names = sum(len(part.name) for part in call.parts)
        if names > self._limits.part_names:
            raise errors.BadRequest(
                f"the names of the input's parts have {names} characters; at most {self._limits.part_names} will do"
            )
        return self._registry.get(call.model, call.version).submit(call)

    async def predict(self, call: Call) -> Reply:
        """The whole answer; the chunks of a handler that streams are joined."""
        replies = await self.submit(call).answer(self._limits.response_bytes)
        if len(replies) == 1:
            return replies[0]
        last = replies[-1]
        return Reply(
            status=last.status,
            reason=last.reason,
            headers=replies[0].headers or last.headers,
            body=b"".join(reply.body for reply in replies),
        )

    def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        """The answer piece by piece; refusals are raised at once. Close the generator, also when leaving early."""
        return self.submit(call).replies()

    def check_model(self, name: str, version: str = "") -> None:
        """Raises ModelNotFound or VersionNotFound unless it is registered."""
        self._registry.get(name, version)

    def only_startup_model(self) -> str | None:
        """The one model that was loaded when the server started; None where there is none or more."""
        names = {model.name for model in self._registry if model.loaded_at_startup}
        return names.pop() if len(names) == 1 else None

    def is_healthy(self) -> bool:
        """Whether every default version has the workers it should have, and the server is not draining."""
        return not self._draining and self._registry.is_healthy()
