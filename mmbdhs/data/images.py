"""Images in the forms in which users have them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "Image | str | os.PathLike[str] | bytes"
Images: TypeAlias = "ImageSource | Sequence[ImageSource]"


def load_images(images: Images) -> list[Image]:
    """The RGB images of one prompt. Raises ExampleError for none, or one that cannot be decoded.

    images: a PIL image, a path or encoded bytes, or a list of these.
    """
    several: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
    if not several or any(image is None for image in several):
        raise ExampleError(f"images: needs at least one image for each prompt, got {images!r}")
    return [_load_image(image) for image in several]


def _load_image(image: ImageSource) -> Image:
    from PIL import Image as PILImage

    if isinstance(image, PILImage.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, os.PathLike, bytes)):
        raise ExampleError(f"images: needs a PIL image, a path or encoded bytes, got {type(image).__name__}")
    try:
        with PILImage.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, PILImage.DecompressionBombError) as error:
        name = f"{len(image)} bytes" if isinstance(image, bytes) else repr(os.fspath(image))
        raise ExampleError(f"images: needs an image that can be decoded, got {name} ({error})") from error
