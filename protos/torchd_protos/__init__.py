"""What torchd's processes and clients say to each other: the generated messages, and the worker protocol's codec."""
