"""TorchServe: ts/handler_utils/distributed/pt_pippy.py."""

from torchd_workers.handlers.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers

__all__ = ["get_pipeline_driver", "initialize_rpc_workers"]
