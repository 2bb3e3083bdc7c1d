"""TorchServe: ts/handler_utils."""
