"""TorchServe: ts/handler_utils/preprocess."""
