"""Thumbnails: their size, their orientation, and which of their tokens are visible."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_page import photo, row

from mmbdhs.pairs.thumbnails import thumbnails


def decoded(view: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(view["src"].removeprefix("data:image/webp;base64,"))))


def test_a_photo_becomes_small() -> None:
    (view,) = thumbnails(row(0, images=[{"bytes": photo(0), "path": "a.jpg"}]))
    assert decoded(view).size == (view["width"], view["height"]) == (200, 150) and view["path"] == "a.jpg"
    assert 500 < len(view["src"]) < 8000


def test_a_small_image_keeps_its_size_and_a_turned_one_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    (view,) = thumbnails(row(0, images=[{"bytes": None, "path": str(tmp_path / "turned.png")}]))
    assert (view["width"], view["height"]) == (20, 40)
    top, bottom = np.asarray(decoded(view).convert("RGB")).astype(int)[[5, 35], 10]
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


@pytest.mark.parametrize("image", [{"bytes": None, "path": "/gone.png"}, {"bytes": b"no image", "path": None}])
def test_an_image_that_cannot_be_shown_says_why(image: dict) -> None:
    (view,) = thumbnails(row(0, images=[image]))
    assert view["fault"].startswith("images: needs") and "src" not in view


def test_tokens_are_counted_through_the_images_in_order() -> None:
    images = [{"bytes": photo(0), "path": None}] * 3
    columns = {"images": images, "image_tokens": 20, "image_grids": [[2, 4], [1, 4], [2, 4]]}
    views = thumbnails(row(0, **columns, visible_image_tokens=[0, 7, 9, 12, 18]))
    assert [(view["grid"], view["visible"]) for view in views] == [([2, 4], [0, 7]), ([1, 4], [1]), ([2, 4], [0, 6])]


@pytest.mark.parametrize(
    "columns",
    [{"image_grids": None}, {"image_grids": [[2, 4]]}, {"image_tokens": 17}, {"noise_steps": 500}],
    ids=["no grid", "a grid for one of two images", "tokens besides the grids", "noise"],
)
def test_tokens_without_a_place_have_no_grid(columns: dict) -> None:
    images = [{"bytes": photo(0), "path": None}] * 2
    usual = {"images": images, "image_tokens": 16, "image_grids": [[2, 4], [2, 4]], "visible_image_tokens": [3]}
    assert all("grid" not in view for view in thumbnails(row(0, **usual | columns)))
    assert all("grid" in view for view in thumbnails(row(0, **usual)))
