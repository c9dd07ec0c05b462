"""Small views of the images of a pair, and which of their tokens the model saw."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmbdhs.data import load_images
from mmbdhs.errors import ExampleError

_SIDE = 200  # pixels of the longest side
_QUALITY = 70  # about 5 kB for a photo


def thumbnails(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A JSON-ready view of each image of a row.

    src, width, height: the image; without them, `fault` says why it cannot be shown.
    path: of its file, where there is one.
    grid, visible: rows and columns of its image tokens, and which of these the model saw; without them, its tokens
        form no grid, or the image was noisy instead of masked.
    """
    views = [_view(image) for image in row["images"]]
    for view, tokens in zip(views, _tokens(row, len(views)), strict=True):
        view.update(tokens)
    return views


def _view(image: Mapping[str, Any]) -> dict[str, Any]:
    view = {"path": image["path"]} if image["path"] else {}
    try:
        (loaded,) = load_images([image])
    except ExampleError as error:
        return view | {"fault": error.reason}
    loaded.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    loaded.save(file, format="WEBP", quality=_QUALITY, method=3)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return view | {"src": source, "width": loaded.width, "height": loaded.height}


def _tokens(row: Mapping[str, Any], count: int) -> Sequence[dict[str, Any]]:
    """The grid of each image, and the visible tokens by their number in it."""
    grids = row["image_grids"] or []
    sizes = [rows * columns for rows, columns in grids]
    if row["noise_steps"] or len(grids) != count or sum(sizes) != row["image_tokens"]:
        return [{}] * count
    found, begin = [], 0
    for grid, size in zip(grids, sizes, strict=True):
        visible = [token - begin for token in row["visible_image_tokens"] if begin <= token < begin + size]
        found.append({"grid": grid, "visible": visible})
        begin += size
    return found
