"""The name `ts` for handlers written for TorchServe. Every file here only re-exports."""

from torchd_workers.context import TORCHSERVE_VERSION as __version__

__all__ = ["__version__"]
