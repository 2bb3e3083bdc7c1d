"""The fault hook: named points where a test can make the daemon fail. In production nothing is installed."""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str], None]


class _Hooks:
    """The one installed hook, if any."""

    hook: Hook | None = None


def fault(point: str) -> None:
    """Does nothing unless a test installed a hook, which may raise, count or kill at `point`."""
    if _Hooks.hook is not None:
        _Hooks.hook(point)


def install(hook: Hook | None) -> None:
    """Sets the hook, or takes it away with None."""
    _Hooks.hook = hook
