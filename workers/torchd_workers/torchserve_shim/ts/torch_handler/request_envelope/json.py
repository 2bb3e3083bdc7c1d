"""TorchServe: ts/torch_handler/request_envelope/json.py."""

from torchd_workers.handlers.envelopes.json import JSONEnvelope

__all__ = ["JSONEnvelope"]
