"""TorchServe: ts/torch_handler/distributed."""
