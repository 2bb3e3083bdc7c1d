"""TorchServe: ts/handler_utils/utils.py."""

from torchd_workers.classes import import_class
from torchd_workers.streaming import send_intermediate_predict_response
from torchd_workers.torchserve.otf import create_predict_response

__all__ = ["create_predict_response", "import_class", "send_intermediate_predict_response"]
