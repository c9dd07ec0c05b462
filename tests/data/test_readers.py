"""Records of data: images in all their forms, rows that are left out, and records in another process."""

from __future__ import annotations

import base64
import json
import logging
import pickle
from pathlib import Path

import pytest
from helpers.published_rows import FORMS, PUBLISHED, stored
from helpers.small_images import encoded, two_pixels
from PIL import Image

from mmbdhs.data import data_fingerprint, open_records, read_records, usable_rows, write_jsonl

ASKED = {"prompt": "What?", "chosen": "A cat."}
PNG = encoded(two_pixels())
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("a.png", ["{}/a.png"]),
        (["a.png"], ["{}/a.png"]),
        (["b/a.png", "/c.png"], ["{}/b/a.png", "/c.png"]),
        ({"bytes": None, "path": "a.png"}, [{"bytes": None, "path": "{}/a.png"}]),
        ([{"path": "a.png"}, "/c.png"], [{"path": "{}/a.png"}, "/c.png"]),
        ([f"data:image/png;base64,{BASE64}"], [f"data:image/png;base64,{BASE64}"]),
        ([BASE64], [BASE64]),
    ],
)
def test_images_in_all_their_forms(stored, found, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"images": stored, **ASKED}])
    right = json.loads(json.dumps(found).replace("{}/", f"{tmp_path}/"))
    assert list(open_records(tmp_path / "pairs.jsonl")) == [{"images": right, **ASKED}]


@pytest.mark.parametrize("image", [PNG, bytearray(PNG), {"bytes": PNG, "path": "a.png"}, Path("a.png"), two_pixels()])
def test_images_in_memory_stay_as_they_are(image):
    (record,) = open_records([{"images": image, **ASKED}])
    assert record["images"][0] is image


@pytest.mark.parametrize("form", FORMS)
def test_images_in_a_folder_of_their_own(form, tmp_path, monkeypatch):
    data = stored(form, [PUBLISHED["LLaVA-Instruct"][0][0]], tmp_path)
    monkeypatch.chdir(tmp_path)
    records = open_records(data, image_folder="coco")
    for one in (records, pickle.loads(pickle.dumps(records)), open_records(records, image_folder=tmp_path / "coco")):
        assert one[0]["images"] == [str(tmp_path / "coco" / "a.png")]
    assert open_records(records) is records
    assert records.fingerprint == open_records(data).fingerprint


BAD_LINES = {
    '{"images": ["a.png", null]}': "images: needs at least one image for each prompt, got None",
    '{"images": 3}': "images: needs a PIL image, a path or encoded bytes, got int",
    '{"images": {"path": 3}}': "images: needs a dict with encoded bytes under 'bytes' or a path",
    '{"images": {"bytes": "iVBO"}}': "images: needs encoded bytes under 'bytes', got str",
    '{"images": ["https://example.org/a.png"]}': "images: needs an image or a path, got 'https://example.org",
    '{"images": "gone.png", "prompt": "x", "chosen": "y"}': "images: needs a file that is there, got '",
    '{"images": "a.png"}': "prompt: needs a string or a list of messages with a role, got NoneType",
    "[1]": "needs one JSON object a line, got list in line 3",
    "{": "needs one JSON object a line, line 3 is none (",
    "[" * 100000: "needs one JSON object a line, line 3 is none (",
    '{"n": "\udce9"}': "needs one JSON object a line, line 3 is none ('utf-8' codec",  # a byte of Latin-1
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_row_that_cannot_be_used_is_named_or_skipped(line, tmp_path, caplog):
    (tmp_path / "a.png").touch()
    good = {"images": [str(tmp_path / "a.png")], **ASKED}
    target = tmp_path / "pairs.jsonl"
    lines = f"{json.dumps(good)}\n\n{line}\n{json.dumps(good)}\n"
    target.write_text(lines, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as caught:
        read_records(target)
    assert str(caught.value).startswith(f"records: row 1: {BAD_LINES[line]}")
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        assert read_records(target, on_error="skip") == [good, good]
    (message,) = caplog.messages
    assert message.startswith(f"skipped row 1: {BAD_LINES[line]}")


def test_records_need_a_known_way_to_treat_errors_and_turns():
    for call in (lambda: read_records([{"images": "a", **ASKED}], "ignore"), lambda: usable_rows([], (), "ignore")):
        with pytest.raises(ValueError, match="on_error: needs 'raise' or 'skip', got 'ignore'"):
            call()
    with pytest.raises(ValueError, match="turns: needs one of 'last', 'first', 'every', got 'all'"):
        open_records([{"images": "a", **ASKED}], turns="all")


BAD_RECORDS = [
    (None, "needs a mapping from columns to values, got NoneType"),
    ("a.png", "needs a mapping from columns to values, got str"),
    ({}, "needs the columns images, prompt, got none"),
    ({"images": "{}/a.png", "prompt": None}, "needs the columns images, prompt, got images"),
    ({"images": "{}/a.png", "prompt": float("nan"), "n": 1}, "needs the columns images, prompt, got images, n"),
    ({"images": ["{}/a.png", None], "prompt": "x"}, "images: needs at least one image for each prompt, got None"),
    ({"images": [3], "prompt": "x"}, "images: needs a PIL image, a path or encoded bytes, got int"),
    ({"images": "{}/gone.png", "prompt": "x"}, "images: needs a file that is there, got '{}/gone.png'"),
    ({"images": Path("gone.png"), "prompt": "x"}, "images: needs a file that is there, got 'gone.png'"),
    ({"images": [{"path": "{}/gone.png"}], "prompt": "x"}, "images: needs a file that is there, got '{}/gone.png'"),
    ({"images": ["{}"], "prompt": "x"}, "images: needs the path of a regular file, got a folder at '{}'"),
    ({"images": "http://a.org/a.png", "prompt": "x"}, "images: needs an image or a path, got 'http://a.org/a.png'"),
]


def within(folder, value):
    """The value with {} in its texts replaced by the folder."""
    if isinstance(value, dict):
        return {key: within(folder, item) for key, item in value.items()}
    if isinstance(value, list):
        return [within(folder, item) for item in value]
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_a_record_that_cannot_be_used_is_named_or_skipped(record, message, tmp_path, caplog):
    (tmp_path / "a.png").touch()
    record, message = within(tmp_path, record), within(tmp_path, message)
    good = {"images": [str(tmp_path / "a.png")], "prompt": "x"}
    with pytest.raises(ValueError) as caught:
        usable_rows([good, record], ["images", "prompt"])
    assert str(caught.value).startswith(f"records: row 1: {message}")
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        assert usable_rows([good, record, good], ["images", "prompt"], "skip") == [0, 2]
    assert caplog.messages[0].startswith(f"skipped row 1: {message}")
    with pytest.raises(ValueError, match="records: needs at least one that can be used, got none"):
        usable_rows([record], ["images", "prompt"], "skip")


def test_usable_rows_decode_no_image(tmp_path, monkeypatch):
    (tmp_path / "no.png").write_bytes(b"no image")
    (tmp_path / "two.png").write_bytes(encoded(two_pixels()))
    path, stored = str(tmp_path / "no.png"), Image.open(tmp_path / "two.png")
    images = [path, Path(path), {"path": path}, b"no image", f"data:image/png;base64,{BASE64}", BASE64, [stored, path]]
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("an image is decoded"))
    assert usable_rows([{"images": image} for image in images], ["images"]) == list(range(7))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("image", [None, float("nan"), "", [], [None]])
def test_text_only_rows_are_left_out_and_counted(image, on_error, tmp_path, caplog):
    (tmp_path / "a.png").touch()
    rows = [{"images": one, **ASKED} for one in (str(tmp_path / "a.png"), image, str(tmp_path / "a.png"), image)]
    for records in (rows, open_records(rows)):
        caplog.clear()
        assert usable_rows(records, ["images", "prompt"], on_error) == [0, 2]
        assert caplog.messages == ["left out 2 text-only row(s), the first is row 1"]
    with pytest.raises(ValueError, match="records: needs at least one that can be used, got none"):
        usable_rows(rows[1:2], ["images"], on_error)


def test_rows_of_several_records_are_counted_once(tmp_path, caplog):
    (tmp_path / "a.png").touch()
    good = PUBLISHED["LLaVA-Instruct"][0][0]
    rows = [good | {"image": image} for image in (None, str(tmp_path / "a.png"), None)]
    assert usable_rows(open_records(rows, turns="every"), ["images"]) == [2, 3]
    assert caplog.messages == ["left out 2 text-only row(s), the first is row 0"]


def test_images_of_a_dataset_are_not_decoded(tmp_path):
    from datasets import Dataset, List
    from datasets import Image as ImageFeature

    images = [[{"bytes": b"no image", "path": None}], [{"bytes": PNG, "path": "a.png"}]]
    dataset = Dataset.from_dict({"images": images, "prompt": ["What?"] * 2, "chosen": ["A cat."] * 2})
    dataset = dataset.cast_column("images", List(ImageFeature()))
    assert usable_rows(dataset, ["images", "prompt"]) == usable_rows(open_records(dataset), ["images"]) == [0, 1]
    assert open_records(dataset)[0]["images"] == images[0]


@pytest.mark.parametrize("form", FORMS)
def test_records_can_be_pickled(form, tmp_path, monkeypatch):
    rows = [row for row, _ in PUBLISHED["LLaVA-Instruct"]] * 3
    monkeypatch.chdir(tmp_path)
    data = stored(form, rows, Path())
    records = open_records(data, turns="every")
    written = pickle.dumps(records)
    monkeypatch.chdir("/")
    again = pickle.loads(written)
    assert list(again) == list(records) and len(again) == 6
    assert (again.fingerprint, again.columns) == (records.fingerprint, records.columns)


def test_data_that_changed_is_noticed_when_it_is_opened_again(tmp_path):
    target = tmp_path / "pairs.jsonl"
    write_jsonl(target, [{"images": "a", **ASKED}])
    written = pickle.dumps(open_records(target))
    write_jsonl(target, [{"images": "b", **ASKED}])
    with pytest.raises(ValueError, match=r"data: needs the content that it had .*pairs.jsonl has changed"):
        pickle.loads(written)


@pytest.mark.parametrize("form", FORMS)
def test_fingerprints_see_content_and_turns(form, tmp_path):
    rows = [PUBLISHED["LLaVA-Instruct"][0][0]] * 2
    other = [rows[0], rows[1] | {"id": "33472"}]
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    same, again, changed = (stored(form, one, folder) for one, folder in zip((rows, rows, other), folders, strict=True))
    found = [open_records(same).fingerprint, open_records(changed).fingerprint]
    found += [open_records(same, turns=turns).fingerprint for turns in ("first", "every")]
    assert len(set(found)) == 4
    if form not in ("dataset", "saved", "saved splits"):  # `datasets` gives each dataset a fingerprint of its own
        assert open_records(again).fingerprint == found[0]
    records = open_records(same)
    assert data_fingerprint(records) == {"records": 2, "fingerprint": records.fingerprint}


def test_records_are_opened_again_for_other_turns_alone(tmp_path):
    records = open_records([PUBLISHED["LLaVA-Instruct"][0][0]])
    assert open_records(records) is records
    every = open_records(records, turns="every")
    assert (len(records), len(every)) == (1, 2) and every.turns == "every"


def test_data_without_rows_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    for data in ([], tmp_path / "a.json"):
        with pytest.raises(ValueError, match="data: needs at least one row, got none"):
            open_records(data)


def test_each_turn_of_a_keyed_conversation_has_its_own_draws() -> None:
    turns = [{"from": who, "value": text} for text in ("One.", "Two.") for who in ("human", "gpt")]
    data = [{"key": 7, "image": "a.png", "conversations": turns}]
    assert [record["key"] for record in open_records(data, turns="every")] == ["7/0", "7/1"]
    assert open_records(data)[0]["key"] == 7
