"""TorchServe: ts/handler_utils/distributed/pt_pippy.py."""

from torchd_workers.handlers.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers

# TorchServe's documentation spells it so, and handlers that were written from it.
get_pipline_driver = get_pipeline_driver

__all__ = ["get_pipeline_driver", "get_pipline_driver", "initialize_rpc_workers"]
