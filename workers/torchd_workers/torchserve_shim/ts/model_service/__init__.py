"""TorchServe: ts/model_service."""
