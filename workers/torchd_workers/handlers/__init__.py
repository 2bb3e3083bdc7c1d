"""The handlers that torchd brings: the name an archive gives, and the module with the class. A new one is a row."""

HANDLERS = {"base_handler": "torchd_workers.handlers.base"}
