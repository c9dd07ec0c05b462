"""Images in all their forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmbdhs.data import load_images
from mmbdhs.errors import ExampleError


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "needs at least one image"),
        ([None], "needs at least one image"),
        (3, "needs a PIL image, a path or encoded bytes, got int"),
        (b"nope", "needs an image that can be decoded, got 4 bytes"),
    ],
)
def test_images_that_cannot_be_used_are_example_errors(images: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=f"images: {message}"):
        load_images(images)


def test_an_image_too_large_to_open_safely_is_an_example_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ExampleError, match=r"images: needs an image that can be decoded, got .*large\.png"):
        load_images(tmp_path / "large.png")
