"""TorchServe: ts/version.py."""

from torchd_workers.context import TORCHSERVE_VERSION as __version__

__all__ = ["__version__"]
