"""TorchServe: ts/torch_handler/request_envelope/body.py."""

from torchd_workers.handlers.envelopes.body import BodyEnvelope

__all__ = ["BodyEnvelope"]
