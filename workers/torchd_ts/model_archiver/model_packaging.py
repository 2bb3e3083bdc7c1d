"""Packing a model from Python, or from torch-model-archiver's command line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from torchd_archiver.cli import main
from torchd_archiver.errors import ArchiveInvalid, PackFailed
from torchd_archiver.packing import PackRequest, pack

from .model_archiver_config import ModelArchiverConfig
from .model_archiver_error import ModelArchiverError

logger = logging.getLogger(__name__)


def generate_model_archive(config: ModelArchiverConfig | None = None) -> None:
    """Writes the archive that `config` describes; raises ModelArchiverError. Without one the command line says."""
    if config is None:
        sys.exit(main())
    try:
        logger.info("wrote %s", pack(_request(config)))
    except (ArchiveInvalid, PackFailed) as error:
        raise ModelArchiverError(str(error)) from error


def _request(config: ModelArchiverConfig) -> PackRequest:
    return PackRequest(
        model_name=config.model_name,
        version=config.version,
        handler=config.handler,
        serialized_file=_path(config.serialized_file),
        model_file=_path(config.model_file),
        extra_files=tuple(name.strip() for name in (config.extra_files or "").split(",") if name.strip()),
        requirements_file=_path(config.requirements_file),
        config_file=_path(config.config_file),
        runtime=config.runtime,
        export_path=Path(config.export_path),
        archive_format=config.archive_format,
        force=config.force,
    )


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


if __name__ == "__main__":
    generate_model_archive()
