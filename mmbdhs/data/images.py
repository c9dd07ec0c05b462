"""Images in the forms in which users have them."""

from __future__ import annotations

import base64
import io
import os
import re
import reprlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np

from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "Image | str | os.PathLike[str] | bytes | bytearray | memoryview | Mapping[str, Any]"
"""A PIL image; a path; encoded bytes; a dict {"bytes": …, "path": …}, as undecoded columns of `datasets` hold; or text:
a path, a data: URI or base64."""
Images: TypeAlias = "ImageSource | Sequence[ImageSource]"
"""The images of one prompt: one, or a list of them."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_CONVERTIBLE = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_BITS_OF_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_FETCH_SECONDS, _FETCH_BYTES = 30, 2**28
_LOCKS = [threading.Lock() for _ in range(64)]  # Pillow decodes an image, and reads its EXIF data, on first use
_STARTS_PROGRAMS = {"EPS"}  # Pillow has Ghostscript decode these
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:", re.IGNORECASE)
_LONG_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{40,}=*\s*")


def load_images(images: Images, *, allow_urls: bool = False) -> list[Image]:
    """The images of one prompt in RGB, as a viewer shows them.

    The EXIF orientation is applied and transparency is placed on white. 16-bit grey is scaled to 8 bits. Files with
    several frames give the first, PIL images the frame at which they stand. The caller's images stay as they are.

    A file may hold up to twice PIL.Image.MAX_IMAGE_PIXELS (about 179 million pixels unless that is changed). PostScript
    is refused, because Pillow would start another program to decode it.

    images: one image or a list of images, in any form of `ImageSource`.
    allow_urls: whether http, https and file URLs are fetched.

    Raises ExampleError, naming the image, for one that is not there or cannot be decoded, for pixels that have no
    certain meaning as colours, for a URL without `allow_urls`, for anything that is no image, and for no image.
    """
    return [_load_image(image, allow_urls) for image in image_list(images)]


def image_list(images: Any) -> list[Any]:
    """The images of one prompt as a list. Raises ExampleError if there is none, or None among them."""
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if not several or any(image is None for image in several):
        raise ExampleError(f"images: needs at least one image for each prompt, got {'None' if several else '[]'}")
    return several


def locate_image(image: Any, *, allow_urls: bool = False) -> Image | bytes | str:
    """The PIL image itself, the encoded bytes, or the path of a file, which is not opened. Nothing is decoded.

    image: one image in any form of `ImageSource`.
    allow_urls: as in `load_images`.

    Raises ExampleError for anything else, and for a URL that is not allowed or cannot be fetched.
    """
    from PIL.Image import Image as PILImage

    if isinstance(image, PILImage):
        return image
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, Mapping):
        return locate_image(_bytes_or_path(image), allow_urls=allow_urls)
    if isinstance(image, os.PathLike):
        return os.fsdecode(image)
    if isinstance(image, str):
        return _locate_text(image, allow_urls)
    raise ExampleError(f"images: needs a PIL image, a path or encoded bytes, got {type(image).__name__}")


def stored_image(image: ImageSource, *, embed: bool) -> dict[str, bytes | str | None]:
    """An image as `datasets` stores it: {"bytes": the encoded file or None, "path": its name, its path, or None}.

    image: one image in any form of `ImageSource`. A PIL image is encoded as PNG.
    embed: whether to store the file's content and name, instead of the path alone. What has no path is embedded.

    Raises ExampleError for a file that is not there.
    """
    located = locate_image(image)
    if isinstance(located, str):
        require_file(located)
        if not embed:
            return {"bytes": None, "path": os.path.abspath(located)}
        with open(located, "rb") as file:
            return {"bytes": file.read(), "path": os.path.basename(located)}
    path = image.get("path") if isinstance(image, Mapping) else None
    return {"bytes": located if isinstance(located, bytes) else _as_png(located), "path": path}


def _as_png(image: Image) -> bytes:
    file = io.BytesIO()
    with _library("an image that can be encoded as PNG", _name(image)):
        image.save(file, format="PNG")
    return file.getvalue()


def require_file(path: str) -> None:
    """Raise ExampleError if no regular file is there. Nothing is opened: a named pipe would block for ever."""
    if not os.path.exists(path):
        raise ExampleError(f"images: needs a file that is there, got {_shown(path)}")
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a device, pipe or socket"
        raise ExampleError(f"images: needs the path of a regular file, got {kind} at {_shown(path)}")


def _bytes_or_path(image: Mapping[str, Any]) -> Any:
    content, path = image.get("bytes"), image.get("path")
    if content is not None and not isinstance(content, (bytes, bytearray, memoryview)):
        raise ExampleError(f"images: needs encoded bytes under 'bytes', got {type(content).__name__}")
    if content is None and not isinstance(path, (str, os.PathLike)):
        raise ExampleError("images: needs a dict with encoded bytes under 'bytes' or a path under 'path', got neither")
    return path if content is None else content


def _locate_text(text: str, allow_urls: bool) -> bytes | str:
    if _URL.match(text):
        if allow_urls:
            return _fetch(text)
        raise ExampleError(
            f"images: needs an image or a path, got {_shown(text)}, which is a URL and is not fetched from data. "
            "Download it, or pass load_images(url, allow_urls=True) instead of it"
        )
    if _DATA_URI.match(text):
        with _library("a data: URI that can be read", _shown(text)), urlopen(text) as content:
            return content.read()
    if os.path.isfile(text):
        return text
    content = _base64_image(text)
    return text if content is None else content


def _fetch(url: str) -> bytes | str:
    """What is at an http or https URL, or the path of a file URL."""
    with _library("a URL", _shown(url)):
        parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return url2pathname(parts.path)
    if parts.scheme not in ("http", "https"):
        raise ExampleError(f"images: needs an http, https or local file URL, got {_shown(url)}")
    request = Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "mmbdhs"})
    with _library("a URL that can be fetched", _shown(url)), urlopen(request, timeout=_FETCH_SECONDS) as response:
        content: bytes = response.read(_FETCH_BYTES + 1)
    if len(content) > _FETCH_BYTES:
        raise ExampleError(f"images: needs a file of at most {_FETCH_BYTES} bytes at a URL, got more at {_shown(url)}")
    return content


def _base64_image(text: str) -> bytes | None:
    """The bytes of the base64 text of an image, or None for other text: paths may consist of the same letters."""
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        PILImage.open(io.BytesIO(content)).close()
    except (ValueError, UnidentifiedImageError):
        return None
    except Exception:
        pass  # an image with something wrong about it, which is named when it is decoded
    return content


def _load_image(image: ImageSource, allow_urls: bool) -> Image:
    from PIL import Image as PILImage

    located, name = locate_image(image, allow_urls=allow_urls), _name(image)
    if isinstance(located, PILImage.Image):
        with _LOCKS[id(located) // 64 % len(_LOCKS)]:  # the same image may belong to several examples
            return _as_shown(located, name)
    if isinstance(located, str):
        require_file(located)
    with _library("an image that can be decoded", name):
        PILImage.init()
        formats = sorted(PILImage.OPEN.keys() - _STARTS_PROGRAMS)
        opened = PILImage.open(located if isinstance(located, str) else io.BytesIO(located), formats=formats)
    with opened:
        return _as_shown(opened, name)


def _as_shown(image: Image, name: str) -> Image:
    """A new image in RGB of what a viewer shows."""
    from PIL import ImageOps

    with _library("an image that can be decoded", name):
        upright = ImageOps.exif_transpose(image)
    # Pillow before 10.3 opens PNG files of 16-bit grey in mode I, and it still does so with PGM files.
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_sixteen_bits(upright, getattr(image, "tag_v2", {}))
    if image.mode not in _CONVERTIBLE:
        raise ExampleError(
            f"images: needs colours of 8 bits or grey of 16, got mode {image.mode!r} in {name}. "
            "Scale its values to 0 … 255 and convert it to RGB"
        )
    with _library("an image that can be decoded", name):
        return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def _from_sixteen_bits(image: Image, tags: Mapping[int, Any]) -> Image:
    """The image with its grey values divided by the largest one that its bits can hold; Pillow would cut them off.

    tags: of a TIFF file, which may hold 12 bits instead of 16, and negatives; Pillow leaves both as they are.
    """
    from PIL import Image as PILImage

    white = 2 ** tags.get(_BITS_OF_SAMPLE, (16,))[0] - 1
    stored = np.asarray(image).astype(np.int32)
    grey = (stored * 255 + white // 2) // white
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    grey[stored == image.info.get("transparency", -1)] = 255
    return PILImage.fromarray(grey.astype(np.uint8)).convert("RGB")


def _on_white(image: Image) -> Image:
    from PIL import Image as PILImage

    # Pillow has no conversion of premultiplied grey (La) other than this one.
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    page = PILImage.new("RGBA", layer.size, "white")
    page.alpha_composite(layer)
    return page.convert("RGB")


@contextmanager
def _library(need: str, name: str) -> Iterator[None]:
    """Turn whatever another library raises about an image into an ExampleError.

    Image decoders raise almost anything for a broken file. Only calls of such libraries may stand in this context, so
    that faults of our own are still raised as what they are.
    """
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ExampleError(f"images: needs {need}, got {name} ({reason})") from error


def _name(image: Any) -> str:
    """An image for error messages."""
    if isinstance(image, Mapping):
        return _name(_bytes_or_path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"{memoryview(image).nbytes} bytes"
    if isinstance(image, (str, os.PathLike)):
        return _shown(os.fsdecode(image))
    return f"a PIL image of {image.width} x {image.height} pixels"


def _shown(text: str) -> str:
    """A text for error messages: encoded images, and all that is longer than a path should be, are cut short."""
    short = reprlib.Repr()
    short.maxstring = 40 if _DATA_URI.match(text) or _LONG_BASE64.fullmatch(text) else 240
    return short.repr(text)
