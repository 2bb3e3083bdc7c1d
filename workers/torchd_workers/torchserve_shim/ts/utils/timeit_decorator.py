"""TorchServe: ts/utils/timeit_decorator.py."""

from torchd_workers.torchserve.util import timeit

__all__ = ["timeit"]
