"""Takes the worker process with it while loading."""

from __future__ import annotations

import os
from typing import Any


class Dies:
    """A handler whose process leaves in initialize."""

    def initialize(self, context: Any) -> None:
        """Leaves."""
        os._exit(3)

    def handle(self, data: Any, context: Any) -> Any:
        """Is never called."""
        return data
