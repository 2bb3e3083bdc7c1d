"""Images for handlers: made by a rule, so that every machine has the same pixels, and one photograph."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).resolve().parents[1] / "data"
KITTEN = DATA / "kitten_small.jpg"
# Wide, high, odd, smaller than the crop on one side or both, exactly as large.
SIZES = [(300, 200), (200, 300), (257, 256), (1023, 767), (100, 37), (33, 500), (224, 224), (256, 256), (1, 1)]


def sample(size: tuple[int, int]) -> Image.Image:
    """Waves of three colours, sharp enough that a wrong filter shows."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [(x * x * 7 + y * 13) % 256, (x * 31 + y * y * 3) % 256, (x * y * 5) % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """The image as the bytes of a file without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
