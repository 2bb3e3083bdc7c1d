"""torch-model-archiver's Python API, packed by torchd's archiver."""

from torchd_archiver.manifest import ARCHIVER_VERSION as __version__

from .model_archiver import ModelArchiver
from .model_archiver_config import ModelArchiverConfig

__all__ = ["ModelArchiver", "ModelArchiverConfig", "__version__"]
