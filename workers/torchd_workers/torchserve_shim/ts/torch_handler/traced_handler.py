"""torchd's own, not TorchServe's: traced models at fixed shapes, to derive a handler from, and one client's mistake."""

from torchd_workers.handlers.rows import BadInput
from torchd_workers.handlers.traced import TracedHandler

__all__ = ["BadInput", "TracedHandler"]
