"""TorchServe: ts/torch_handler/request_envelope/kservev2.py."""

from torchd_workers.handlers.envelopes.kservev2 import KServev2Envelope

__all__ = ["KServev2Envelope"]
