"""TorchServe: ts/torch_handler."""
