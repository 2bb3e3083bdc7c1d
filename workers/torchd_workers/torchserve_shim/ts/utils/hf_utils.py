"""TorchServe: ts/utils/hf_utils.py."""

from torchd_workers.torchserve.util import download_model

__all__ = ["download_model"]
