"""The name `ts`. What is in it comes with torchd: its workers put the same files on the path of handlers."""

import os

import torchd_workers
from torchd_workers.context import TORCHSERVE_VERSION as __version__

__all__ = ["__version__"]
__path__ = [os.path.join(os.path.dirname(os.path.abspath(torchd_workers.__file__)), "torchserve_shim", "ts")]
