"""TorchServe: ts/utils."""
