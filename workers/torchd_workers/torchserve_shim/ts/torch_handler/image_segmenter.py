"""TorchServe: ts/torch_handler/image_segmenter.py."""

from torchd_workers.handlers.image_segmenter import ImageSegmenter

__all__ = ["ImageSegmenter"]
