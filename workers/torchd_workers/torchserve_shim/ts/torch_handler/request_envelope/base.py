"""TorchServe: ts/torch_handler/request_envelope/base.py."""

from torchd_workers.handlers.envelopes.base import BaseEnvelope

__all__ = ["BaseEnvelope"]
