"""TorchServe: ts/model_loader.py."""

from torchd_workers.torchserve.service import ModelLoaderFactory, TsModelLoader

__all__ = ["ModelLoaderFactory", "TsModelLoader"]
