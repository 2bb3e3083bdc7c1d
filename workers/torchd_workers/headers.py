"""The mapping in which handlers find a request's headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Headers(dict[str, Any]):
    """A dict that keeps the names' case as they were sent and finds them in any; the last duplicate wins."""

    def __init__(self, pairs: Iterable[tuple[str, Any]] = ()) -> None:
        last = {name.lower(): (name, value) for name, value in pairs}
        super().__init__(last.values())

    def __missing__(self, name: str) -> Any:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return super().__getitem__(found)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._find(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of the header with this name in any case, or `default`."""
        found = name if super().__contains__(name) else self._find(name)
        return default if found is None else super().__getitem__(found)

    def _find(self, name: object) -> str | None:
        if not isinstance(name, str):
            return None
        wanted = name.lower()
        return next((known for known in self if known.lower() == wanted), None)
