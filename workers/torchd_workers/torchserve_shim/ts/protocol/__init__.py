"""TorchServe: ts/protocol."""
