"""TorchServe: ts/context.py."""

from torchd_workers.context import Context, RequestProcessor

__all__ = ["Context", "RequestProcessor"]
