"""The classes of a module of the model: its handler, its network."""

from __future__ import annotations

from types import ModuleType


def classes_in(module: ModuleType, parent: type = object) -> list[type]:
    """The subclasses of `parent` that the module itself defines."""
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, parent)]
    return list(dict.fromkeys(cls for cls in found if cls.__module__ == module.__name__))
