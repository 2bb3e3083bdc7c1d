"""VisionHandler: images from requests to one tensor."""

from __future__ import annotations

import base64
import binascii
import io
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from torchd_workers.context import Context
from torchd_workers.handlers.base import BaseHandler
from torchd_workers.handlers.explaining import integrated_gradients
from torchd_workers.handlers.rows import BadInput, payload_of, stacked
from torchd_workers.handlers.timer import timed

# What TorchServe takes; more of them costs time and explains little more.
EXPLANATION_STEPS = 15


class VisionHandler(BaseHandler):
    """Base of the handlers of images. A subclass sets `image_processing`: a callable from a PIL image to a tensor."""

    image_processing: Any = None

    def initialize(self, context: Context) -> None:
        """Loads the model; without `limit_max_image_pixels` images may have any size."""
        super().initialize(context)
        if not context.system_properties.get("limit_max_image_pixels", True):
            Image.MAX_IMAGE_PIXELS = None

    @cached_property
    def ig(self) -> Any:
        """Captum's IntegratedGradients of the model; a handler may put one of its own here."""
        return integrated_gradients(self.model)

    @timed
    def preprocess(self, data: Any) -> Any:
        """The images of the batch as one tensor: bytes of a file, its base64 as text, or a list of numbers."""
        return self._to_device(stacked([self._image_tensor(payload_of(row)) for row in data]))

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """The share of every pixel in the score of class `target`, by Integrated Gradients."""
        return self.ig.attribute(tensor_data, target=int(target), n_steps=EXPLANATION_STEPS).tolist()

    def _image_tensor(self, image: Any) -> torch.Tensor:
        if isinstance(image, str):
            image = _from_base64(image)
        if not isinstance(image, bytes | bytearray):
            return _tensor_of(image)
        opened = _opened(image)
        tensor: torch.Tensor = self.image_processing(opened)
        return tensor


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"the image came as text that is no base64: {error}") from error


def _opened(image: bytes | bytearray) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(image))
        opened.load()  # here, where a broken file can be told from a broken handler
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = str(error).split(" <_io", 1)[0]
        raise BadInput(f"the request's {len(image)} bytes are no image that can be read: {said}") from error
    return opened


def _tensor_of(image: Any) -> torch.Tensor:
    try:
        return torch.tensor(image, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(image).__name__
        raise BadInput(f"an image is bytes, base64 text or a list of numbers, not this {kind}") from error
