"""ModelArchiverConfig: torch-model-archiver's flags as a value."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass, field, fields


@dataclass
class ModelArchiverConfig:
    """What to pack and where to. `extra_files` is a comma list."""

    model_name: str
    handler: str
    version: str
    serialized_file: str | None = None
    model_file: str | None = None
    extra_files: str | None = None
    runtime: str = "python"
    export_path: str = field(default_factory=os.getcwd)
    archive_format: str = "default"
    force: bool = False
    requirements_file: str | None = None
    config_file: str | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> ModelArchiverConfig:
        """The config of parsed arguments."""
        return cls(**{of.name: getattr(args, of.name) for of in fields(cls)})
