"""TorchServe: ts/handler_utils/distributed/pt_pippy.py; its documentation misspells one name, so there are two."""

from torchd_workers.handlers.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers
from torchd_workers.handlers.distributed.pt_pippy import get_pipeline_driver as get_pipline_driver

__all__ = ["get_pipeline_driver", "get_pipline_driver", "initialize_rpc_workers"]
