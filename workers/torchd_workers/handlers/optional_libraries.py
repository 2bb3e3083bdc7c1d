"""Libraries that only some handlers need, and the one sentence said where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


class LibraryMissing(RuntimeError):
    """A handler needs a library that is not installed."""

    def __init__(self, what: str, library: str, package: str) -> None:
        super().__init__(f"{what} needs {library}, which is not installed here: pip install {package}")


def library(module: str, what: str, package: str) -> ModuleType:
    """The module `module`; raises LibraryMissing, which says that `what` needs it and which package brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise LibraryMissing(what, module.split(".")[0], package) from error
