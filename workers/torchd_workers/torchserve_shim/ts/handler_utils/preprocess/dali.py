"""TorchServe: ts/handler_utils/preprocess/dali.py."""

from torchd_workers.handlers.dali import get_dali_pipeline

__all__ = ["get_dali_pipeline"]
