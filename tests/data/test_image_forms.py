"""Images in all the forms in which they are handed over, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_images import RED_OVER_BLUE, encoded, pixels, two_pixels
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from mmbdhs.data import load_images
from mmbdhs.errors import ExampleError

CONTENT = encoded(two_pixels())
BASE64 = base64.b64encode(CONTENT).decode()
FORMS: dict[str, Callable[[str], Any]] = {
    "PIL image": lambda path: Image.open(path),
    "text": lambda path: path,
    "path": Path,
    "bytes": lambda path: CONTENT,
    "bytearray": lambda path: bytearray(CONTENT),
    "memoryview": lambda path: memoryview(CONTENT),
    "every second byte": lambda path: memoryview(b"".join(bytes([byte, 0]) for byte in CONTENT))[::2],
    "dict of bytes": lambda path: {"bytes": CONTENT, "path": None},
    "dict of bytes and a name": lambda path: {"bytes": CONTENT, "path": "gone.png"},
    "dict of a path": lambda path: {"bytes": None, "path": path},
    "dict of nothing but a path": lambda path: {"path": Path(path)},
    "data URI": lambda path: f"data:image/png;base64,{BASE64}",
    "data URI in capitals": lambda path: f"DATA:image/PNG;base64,{BASE64}",
    "base64": lambda path: BASE64,
    "base64 in lines": lambda path: base64.encodebytes(CONTENT).decode(),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "two.png").write_bytes(CONTENT)
    return str(tmp_path / "two.png")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_image(form: str, path: str) -> None:
    image = FORMS[form](path)
    assert pixels(image) == pixels([image]) == pixels((image,)) == RED_OVER_BLUE


def test_images_keep_their_order(path: str) -> None:
    several = [FORMS[form](path) for form in FORMS]
    several.insert(3, Image.new("L", (1, 1)))
    loaded = load_images(several)
    assert [image.size for image in loaded] == [(1, 2)] * 3 + [(1, 1)] + [(1, 2)] * (len(FORMS) - 3)


def test_transformers_reads_the_same_texts(path: str) -> None:
    for text in (path, f"data:image/png;base64,{BASE64}", BASE64, base64.encodebytes(CONTENT).decode()):
        assert np.array_equal(np.asarray(load_image(text)), np.asarray(load_images(text)[0]))


def test_a_path_may_look_like_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cats").write_bytes(CONTENT)
    assert pixels("cats") == RED_OVER_BLUE
    with pytest.raises(ExampleError, match="images: needs a file that is there, got 'dogs'"):
        load_images("dogs")


# What cannot be used


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "needs at least one image for each prompt, got None"),
        ([], "needs at least one image for each prompt, got []"),
        ([CONTENT, None], "needs at least one image for each prompt, got None"),
        (3, "needs a PIL image, a path or encoded bytes, got int"),
        (np.zeros((2, 2, 3)), "needs a PIL image, a path or encoded bytes, got ndarray"),
        ([["a.png"]], "needs a PIL image, a path or encoded bytes, got list"),
        (
            {"bytes": None, "path": None},
            "needs a dict with encoded bytes under 'bytes' or a path under 'path', got neither",
        ),
        ({}, "needs a dict with encoded bytes under 'bytes' or a path under 'path', got neither"),
        ({"bytes": "iVBO"}, "needs encoded bytes under 'bytes', got str"),
        (b"nope", "needs an image that can be decoded, got 4 bytes (UnidentifiedImageError"),
        ("/nowhere.png", "needs a file that is there, got '/nowhere.png'"),
        ({"path": "/nowhere.png"}, "needs a file that is there, got '/nowhere.png'"),
        ("", "needs a file that is there, got ''"),
        ("a\0.png", "needs a file that is there, got 'a\\x00.png'"),
        ("\ud800.png", "needs a file that is there, got '\\ud800.png'"),
        ("data:image/png;base64", "needs a data: URI that can be read, got 'data:image/png;base64'"),
        ("data:image/png;base64,bm9wZQ==", "needs an image that can be decoded, got 'data:image"),
        ("data:text/plain,nope", "needs an image that can be decoded, got 'data:text/plain,nope'"),
    ],
)
def test_what_is_no_image_is_an_example_error(images: Any, message: str) -> None:
    with pytest.raises(ExampleError) as caught:
        load_images(images)
    assert caught.value.reason.startswith(f"images: {message}")


def test_a_path_that_is_no_regular_file_is_refused_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ExampleError, match=r"needs the path of a regular file, got a device, pipe or socket at .*pipe"):
        load_images(tmp_path / "pipe.png")
    with pytest.raises(ExampleError, match="needs the path of a regular file, got a folder at"):
        load_images(tmp_path)


def test_messages_about_encoded_images_are_short() -> None:
    noise = encoded(Image.effect_noise((40, 40), 90))
    text = base64.b64encode(noise[:-200]).decode()
    decoded = "needs an image that can be decoded, got "
    for broken, message in {
        noise[:-200]: decoded + f"{len(noise) - 200} bytes",
        text: decoded + "'iVBORw0KGgo",
        f"data:image/png;base64,{text}": decoded + "'data:image/png",
        text[:-1]: "needs a file that is there, got 'iVBORw0KGgo",  # no base64 any more
    }.items():
        with pytest.raises(ExampleError, match=f"images: {message}") as caught:
            load_images(broken)
        assert len(str(caught.value)) < 250


def test_an_image_too_large_to_open_safely_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (40, 40)))
    (tmp_path / "large.png").write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for image in (tmp_path / "large.png", base64.b64encode(content).decode()):
        with pytest.raises(ExampleError, match=r"needs an image that can be decoded, got '.*DecompressionBombError"):
            load_images(image)


@pytest.mark.parametrize("error", [OSError, SyntaxError, struct.error, zlib.error, IndexError, EOFError, MemoryError])
def test_whatever_a_decoder_raises_names_the_image(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("broken")

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", fail)
        with pytest.raises(ExampleError, match=f"got {len(CONTENT)} bytes .*{error.__name__}: broken"):
            load_images(CONTENT)
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(ExampleError, match=f"got a PIL image of 1 x 2 pixels .*{error.__name__}: broken"):
        load_images(two_pixels())


def test_a_fault_of_our_own_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("mmbdhs.data.images._from_sixteen_bits", fail)
    with pytest.raises(ValueError, match=r"^a fault$") as caught:
        load_images(Image.new("I;16", (1, 1)))
    assert not isinstance(caught.value, ExampleError)


# URLs


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server in this process that has one image with alpha."""
    (tmp_path / "a b.png").write_bytes(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51))))
    (tmp_path / "page.html").write_text("<html>")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_only_if_that_is_asked_for(site: str, tmp_path: Path) -> None:
    for url in (f"{site}/a%20b.png", f"{site}/a b.png", (tmp_path / "a b.png").as_uri(), "s3://bucket/a.png"):
        for image in (url, {"path": url}):
            with pytest.raises(
                ExampleError, match=rf"got '{url}', which is a URL .*load_images\(url, allow_urls=True\)"
            ):
                load_images(image)
    for url in (f"{site}/a%20b.png", f"{site}/a b.png", (tmp_path / "a b.png").as_uri()):
        (loaded,) = load_images(url, allow_urls=True)
        assert loaded.getpixel((0, 0)) == (255, 204, 204)


def test_a_url_without_an_image_is_named(site: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for url, message in {
        f"{site}/gone.png": r"a URL that can be fetched, got '.*gone.png' \(HTTPError: HTTP Error 404",
        f"{site}/page.html": "an image that can be decoded, got '.*page.html'",
        "http://[": "a URL, got 'http://",
        "http://127.0.0.1:1/a.png": "a URL that can be fetched, got .*Connection refused",
        "s3://bucket/a.png": "an http, https or local file URL, got 's3://bucket/a.png'",
        "file://images/a.png": "an http, https or local file URL, got 'file://images/a.png'",
        (tmp_path / "gone").as_uri(): "a file that is there, got '.*gone'",
        (tmp_path / "pipe").as_uri(): "the path of a regular file, got a device, pipe or socket",
    }.items():
        with pytest.raises(ExampleError, match=f"images: needs {message}"):
            load_images(url, allow_urls=True)
