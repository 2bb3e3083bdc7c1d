"""TorchServe: ts/protocol/otf_message_handler.py."""

from torchd_workers.streaming import send_intermediate_predict_response
from torchd_workers.torchserve.otf import create_predict_response

__all__ = ["create_predict_response", "send_intermediate_predict_response"]
