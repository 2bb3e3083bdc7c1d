"""TorchServe: ts/handler_utils/distributed/deepspeed.py."""

from torchd_workers.handlers.distributed.deepspeed import create_checkpoints_json, get_ds_engine

__all__ = ["create_checkpoints_json", "get_ds_engine"]
