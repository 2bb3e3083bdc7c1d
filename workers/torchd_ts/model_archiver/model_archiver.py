"""ModelArchiver, the class."""

from .model_archiver_config import ModelArchiverConfig
from .model_packaging import generate_model_archive


class ModelArchiver:
    """Packs models."""

    @staticmethod
    def generate_model_archive(config: ModelArchiverConfig) -> None:
        """Writes the archive that `config` describes; raises ModelArchiverError."""
        generate_model_archive(config)
