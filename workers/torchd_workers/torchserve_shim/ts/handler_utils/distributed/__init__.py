"""TorchServe: ts/handler_utils/distributed."""
