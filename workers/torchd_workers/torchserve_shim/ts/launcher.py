"""TorchServe: ts/launcher.py."""

from torchd_workers.torchserve.launcher import register_model, register_model_with_params, start, stop

__all__ = ["register_model", "register_model_with_params", "start", "stop"]
