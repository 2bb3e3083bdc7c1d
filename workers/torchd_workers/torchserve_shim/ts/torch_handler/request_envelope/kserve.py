"""TorchServe: ts/torch_handler/request_envelope/kserve.py."""

from torchd_workers.handlers.envelopes.kserve import KServeEnvelope

__all__ = ["KServeEnvelope"]
