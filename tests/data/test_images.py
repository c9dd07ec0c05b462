"""What images show, against pixels that are known by hand or from Pillow."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_images import RED_OVER_BLUE, encoded, opened, pixels, two_pixels
from PIL import Image
from transformers.image_utils import load_image

from mmbdhs.data import load_images
from mmbdhs.errors import ExampleError

ORIENTATION = 274


def png(width: int, height: int, bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file from its parts, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def grey_tiff(bits: int, photometric: int, data: bytes) -> bytes:
    """A TIFF file of 2 x 1 pixels with these bits a pixel."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    padded = data.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_orientation_of_a_photo_is_applied(kind: str, turn: int) -> None:
    photo = Image.effect_noise((24, 16), 90).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    content = encoded(photo, kind, exif=exif)
    right = load_image(opened(content))
    assert right.size == ((24, 16) if turn < 5 else (16, 24))
    assert np.array_equal(np.asarray(load_images(content)[0]), np.asarray(right))
    assert np.array_equal(np.asarray(load_images(opened(content))[0]), np.asarray(right))


def test_a_turned_photo_is_the_right_way_up() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned: the first column is the top row
    lying = Image.new("RGB", (2, 1), "red")
    lying.putpixel((1, 0), (0, 0, 255))
    assert pixels(encoded(lying, exif=exif)) == RED_OVER_BLUE


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "RGBX", "RGBa", "PA", "CMYK", "HSV"])
def test_colours_are_those_of_the_mode(mode: str) -> None:
    image = two_pixels("RGBA").convert(mode) if mode in ("RGBa", "PA") else two_pixels(mode)
    assert pixels(image) == RED_OVER_BLUE


def test_ycbcr_is_converted_as_pillow_does() -> None:
    image = two_pixels("YCbCr")
    assert pixels(image) == [[image.convert("RGB").getpixel((0, y))] for y in (0, 1)]


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 77, 77), ("1", 1, 255), ("1", 0, 0)])
def test_grey_stays_as_it_is(mode: str, value: int, grey: int) -> None:
    image = Image.new(mode, (1, 1), value)
    assert pixels(image) == pixels(encoded(image)) == [[(grey,) * 3]]


@pytest.mark.parametrize(
    ("mode", "pixel", "shown"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth of red, four fifths of white
        ("RGBA", (9, 8, 7, 255), (9, 8, 7)),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),  # the same, with the colour multiplied already
        ("LA", (0, 51), (204, 204, 204)),
        ("La", (0, 51), (204, 204, 204)),
        ("LA", (30, 255), (30, 30, 30)),
    ],
)
def test_transparent_pixels_stand_on_white(mode: str, pixel: tuple[int, ...], shown: tuple[int, ...]) -> None:
    assert pixels(Image.new(mode, (1, 1), pixel)) == [[shown]]


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("kind", "transparency", "shown"),
    [
        ("PNG", 0, [(255, 255, 255), (30, 40, 50)]),
        ("PNG", b"\xff\x00", [(200, 10, 20), (255, 255, 255)]),
        ("PNG", b"\x33", [(244, 206, 208), (30, 40, 50)]),  # 200/5 + 255·4/5, …
        ("GIF", 1, [(200, 10, 20), (255, 255, 255)]),
        ("PNG", None, [(200, 10, 20), (30, 40, 50)]),
    ],
)
def test_transparent_colours_of_a_palette_stand_on_white(kind: str, transparency: Any, shown: Any) -> None:
    settings = {} if transparency is None else {"transparency": transparency}
    content = encoded(palette_image(), kind, **settings)
    assert pixels(content) == pixels(opened(content)) == [shown]


def test_a_palette_with_alpha_stands_on_white() -> None:
    image = palette_image()
    image.putpalette([200, 10, 20, 0, 30, 40, 50, 255], "RGBA")
    assert pixels(image) == [[(255, 255, 255), (30, 40, 50)]]
    with_alpha = Image.merge("PA", (palette_image(), Image.new("L", (2, 1), 0)))
    assert pixels(with_alpha) == [[(255, 255, 255)] * 2]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", b"\0\1\0\2\0\3")), [(255, 255, 255), (4, 5, 6)]),
        (png(2, 1, 8, 0, b"\0\5\6", (b"tRNS", b"\0\5")), [(255, 255, 255), (6, 6, 6)]),
        (png(2, 1, 1, 0, b"\0\x40", (b"tRNS", b"\0\0")), [(255, 255, 255), (255, 255, 255)]),
        (png(2, 1, 16, 0, b"\0\x03\xe8\x80\0", (b"tRNS", b"\x03\xe8")), [(255, 255, 255), (128, 128, 128)]),
    ],
    ids=["colour", "grey", "one bit", "16 bits"],
)
def test_the_colour_that_stands_for_transparency_becomes_white(content: bytes, shown: Any) -> None:
    assert pixels(content) == pixels(opened(content)) == [shown]


SIXTEEN_BITS = [(0, 0), (257, 1), (30000, 117), (32768, 128), (65535, 255)]


@pytest.mark.parametrize(("value", "grey"), SIXTEEN_BITS)
def test_grey_of_16_bits_is_scaled(value: int, grey: int) -> None:
    shown = [[(grey,) * 3]]
    for mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        image = Image.new(mode, (1, 1))
        image.frombytes(struct.pack(">H" if mode == "I;16B" else "<H", value))
        assert pixels(image) == shown, mode
    for kind in ("PNG", "TIFF", "JPEG2000"):
        assert pixels(encoded(Image.new("I;16", (1, 1), value), kind)) == shown, kind
    assert pixels(b"P5 1 1 65535\n" + struct.pack(">H", value)) == shown
    old = opened(encoded(Image.new("I;16", (1, 1), value))).convert("I")
    old.format = "PNG"  # as older releases of Pillow open such a file
    assert pixels(old) == shown


def test_grey_of_16_bits_is_turned_too() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = Image.new("I;16", (2, 1), 65535)
    lying.putpixel((1, 0), 0)
    assert pixels(encoded(lying, exif=exif)) == [[(255,) * 3], [(0,) * 3]]


@pytest.mark.parametrize(
    ("bits", "photometric", "data", "shown"),
    [
        (12, 1, bytes([0x80, 0x0F, 0xFF]), [128, 255]),  # 0x800 and 0xfff
        (16, 1, struct.pack("<HH", 0, 65535), [0, 255]),
        (16, 0, struct.pack("<HH", 0, 65535), [255, 0]),  # a negative
    ],
)
def test_grey_of_tiff_files(bits: int, photometric: int, data: bytes, shown: list[int]) -> None:
    assert pixels(grey_tiff(bits, photometric, data)) == [[(grey,) * 3 for grey in shown]]


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pixels_that_are_no_certain_colours_are_refused(mode: str) -> None:
    image = Image.new(mode, (1, 1))
    contents = [image] if mode == "I" else [image, encoded(image, "TIFF")]
    for content in contents:
        with pytest.raises(ExampleError, match=f"got mode '{mode}' in .*and convert it to RGB"):
            load_images(content)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_file_with_frames_gives_the_first_and_an_image_the_one_at_which_it_stands(kind: str) -> None:
    colours = [(255, 0, 0), (0, 0, 255)]
    first, second = (Image.new("RGB", (4, 4), colour) for colour in colours)
    settings = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **settings)
    assert pixels(content)[0][0] == colours[0]
    image = opened(content)
    image.seek(1)
    assert pixels(image)[0][0] == colours[1]
    assert image.tell() == 1
    image.seek(0)  # raises if the file was closed
    assert pixels(image)[0][0] == colours[0]


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "I;16"])
def test_the_image_that_is_handed_over_stays_as_it_is(mode: str) -> None:
    image = palette_image() if mode == "P" else Image.new(mode, (2, 1))
    image.info |= {"transparency": b"\0"} if mode == "P" else {}
    image.getexif()[ORIENTATION] = 6
    before = (image.mode, image.size, dict(image.info), image.getpalette("RGBA") if mode == "P" else None)
    content = image.tobytes()
    (loaded,) = load_images(image)
    assert loaded is not image and loaded.size == (1, 2)
    assert (image.mode, image.size, dict(image.info), image.getpalette("RGBA") if mode == "P" else None) == before
    assert image.tobytes() == content and image.getexif()[ORIENTATION] == 6
    loaded.putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == content


def test_formats_that_start_other_programs_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pillow decodes PostScript with Ghostscript, if that is installed."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "page.eps")
    for image in (tmp_path / "page.eps", (tmp_path / "page.eps").read_bytes()):
        with pytest.raises(ExampleError, match="images: needs an image that can be decoded"):
            load_images(image)
