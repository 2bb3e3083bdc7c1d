"""One key for all that is not open: EXAMPLE_KEY of the environment, shown as `Authorization: Bearer KEY`."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from torchd_server.errors import Unauthorized
from torchd_server.settings import ServerSettings, SettingInvalid
from torchd_server.surfaces.auth import Access


class KeyInEnvironment:
    """Decides about each call."""

    def __init__(self, settings: ServerSettings) -> None:
        key = settings.environment.get("EXAMPLE_KEY", "")
        if not key:
            raise SettingInvalid("EXAMPLE_KEY", key, "the key that callers show, in the environment")
        self._wanted = f"Bearer {key}".encode()

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Raises Unauthorized unless the key is shown, once."""
        if access is Access.OPEN:
            return
        if len(authorization) != 1 or not hmac.compare_digest(authorization[0].encode(), self._wanted):
            raise Unauthorized("show the server's key: `Authorization: Bearer KEY`")
