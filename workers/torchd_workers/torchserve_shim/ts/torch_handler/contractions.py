"""TorchServe: ts/torch_handler/contractions.py."""

from torchd_workers.handlers.contractions import CONTRACTION_MAP

__all__ = ["CONTRACTION_MAP"]
