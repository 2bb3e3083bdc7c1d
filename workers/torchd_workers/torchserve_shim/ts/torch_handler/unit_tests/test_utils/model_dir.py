"""TorchServe: ts/torch_handler/unit_tests/test_utils/model_dir.py."""

from torchd_workers.torchserve.model_dir import copy_files, download_model

__all__ = ["copy_files", "download_model"]
