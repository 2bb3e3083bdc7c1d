"""What TorchServe's Python package has beside its handlers: for tests of handlers, scripts and old archives."""
