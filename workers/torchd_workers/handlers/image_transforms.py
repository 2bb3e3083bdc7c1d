"""Steps from a PIL image to a tensor: what torchvision's classes of the same names give, without torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

# Torch has no unsigned 16 bits to compute with.
_PIXEL_TYPES: dict[str, type[np.generic]] = {"I": np.int32, "I;16": np.int16, "F": np.float32}


class Compose:
    """The steps one after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class ToRGB:
    """Three channels, whatever the file had: TorchServe fails on a grey image or one with transparency."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == "RGB" else image.convert("RGB")


class Resize:
    """Bilinear, the shorter edge to `size`; the longer one is rounded down."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        longer = int(self.size * long / short)
        size = (self.size, longer) if width <= height else (longer, self.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


class CenterCrop:
    """The square of `size` in the middle; what a smaller image lacks is black."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        image = self._padded(image)
        width, height = image.size
        left = round((width - self.size) / 2)
        top = round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def _padded(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width >= self.size and height >= self.size:
            return image
        missing_x, missing_y = max(0, self.size - width), max(0, self.size - height)
        canvas = Image.new(image.mode, (width + missing_x, height + missing_y))
        canvas.paste(image, (missing_x // 2, missing_y // 2))
        return canvas


class ToTensor:
    """Channels, rows, columns; bytes become floats from 0 to 1, integers and floats of deeper images stay."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(image, _PIXEL_TYPES.get(image.mode, np.uint8))
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if tensor.dtype != torch.uint8:
            return tensor
        brightest = 1 if image.mode == "1" else 255
        return tensor.to(torch.get_default_dtype()).div(brightest)


class Normalize:
    """Each channel less its mean, by its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype).view(-1, 1, 1)
        std = torch.as_tensor(self.std, dtype=tensor.dtype).view(-1, 1, 1)
        return tensor.sub(mean).div_(std)


# The size and the statistics of ImageNet, which most published weights were trained with.
IMAGENET = Compose(
    [
        ToRGB(),
        Resize(256),
        CenterCrop(224),
        ToTensor(),
        Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)
