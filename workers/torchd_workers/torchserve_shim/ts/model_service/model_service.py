"""TorchServe: ts/model_service/model_service.py."""

from torchd_workers.torchserve.model_service import ModelService, SingleNodeService

__all__ = ["ModelService", "SingleNodeService"]
