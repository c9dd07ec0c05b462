"""Small images, encoded and loaded, whose pixels can be compared by eye."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from mmbdhs.data import load_images

RED_OVER_BLUE = [[(255, 0, 0)], [(0, 0, 255)]]


def two_pixels(mode: str = "RGB") -> Image.Image:
    """Red over blue, so that every turn and every loss of colour shows."""
    image = Image.new("RGB", (1, 2), "red")
    image.putpixel((0, 1), (0, 0, 255))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def pixels(image: Any) -> list[list[tuple[int, ...]]]:
    """The rows of the one image that is loaded."""
    (loaded,) = load_images(image)
    assert loaded.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(loaded).tolist()]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))
