"""TorchServe: ts/metrics."""
