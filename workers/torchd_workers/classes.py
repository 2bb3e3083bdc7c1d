"""Classes by their module or their name: a model's handler, its network."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def classes_in(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that the module itself defines, or those of them that are a `parent_class`."""
    found = [value for value in vars(module).values() if isinstance(value, type)]
    own = dict.fromkeys(cls for cls in found if cls.__module__ == module.__name__)
    return [cls for cls in own if parent_class is None or issubclass(cls, parent_class)]


def import_class(class_name: str, module_prefix: str | None = None) -> Any:
    """The class of a dotted name, under `module_prefix` if there is one; raises ImportError."""
    module_name, _, name = (class_name or "").rpartition(".")
    dotted = ".".join(part for part in (module_prefix, module_name) if part)
    if not name or not dotted:
        raise ImportError(f"{class_name!r} names no class in a module; it must be 'module.Class'")
    found = getattr(importlib.import_module(dotted), name, None)
    if found is None:
        raise ImportError(f"module {dotted} has no class {name}")
    return found
