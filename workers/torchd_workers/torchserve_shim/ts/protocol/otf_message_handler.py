"""TorchServe: ts/protocol/otf_message_handler.py."""

from torchd_workers.streaming import send_intermediate_predict_response

__all__ = ["send_intermediate_predict_response"]
