"""Records in TRL's vision preference layout, and files that are complete or absent."""

import base64
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.small_images import encoded, two_pixels
from PIL import Image

from mmbdhs.data import ChatPrompt, as_chat, preference_record, read_jsonl, read_records, usable_rows, write_jsonl
from mmbdhs.errors import ExampleError
from mmbdhs.sampling.splicing import SentenceSplice

SAMPLE = SimpleNamespace(
    key="a",
    rejected="The cat is red.",
    similarity=0.5,
    iterations=2,
    guided=True,
    visible_image_tokens=(3, 17),
    sentences=(SentenceSplice("The cat is black.", False, 3, "The cat is", " red.", (5, 6, 7), (8, 9)),),
)


def test_record_is_trl_vision_preference():
    record = preference_record(["x.png"], "What is it?", "The cat is black.", SAMPLE, seed=4)
    assert record["images"] == ["x.png"]
    assert record["prompt"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    ]
    assert record["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "The cat is black."}]}]
    assert record["rejected"] == [{"role": "assistant", "content": [{"type": "text", "text": "The cat is red."}]}]
    traced = {k: record[k] for k in ("key", "seed", "similarity", "iterations", "guided", "visible_image_tokens")}
    assert traced == {
        "key": "a",
        "seed": 4,
        "similarity": 0.5,
        "iterations": 2,
        "guided": True,
        "visible_image_tokens": [3, 17],
    }
    assert record["sentences"][0]["completion"] == " red."


def test_messages_stay_unchanged():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
    assert preference_record(["x.png"], chat, "A cat.", SAMPLE, seed=0)["prompt"] == chat


def test_what_the_template_takes_besides_messages_is_written_too():
    chat = ChatPrompt("What?", [{"name": "zoom"}], {"enable_thinking": False})
    record = preference_record(["x.png"], chat, "A cat.", SAMPLE, seed=0)
    assert as_chat(ChatPrompt.of_record(record), 1) == as_chat(chat, 1)
    assert not {"tools", "chat_template_kwargs"} & preference_record(["x.png"], "What?", "A cat.", SAMPLE, 0).keys()


def test_a_prompt_needs_a_placeholder_for_each_image():
    with pytest.raises(ExampleError, match="prompt: needs as many image placeholders as images, got 0 for 2"):
        preference_record(["x.png", "y.png"], [{"role": "user", "content": "Hi"}], "A cat.", SAMPLE, seed=0)


def test_lines_read_back(tmp_path):
    records = [preference_record(["é.png"], "日本?", 'a\n"b"', SAMPLE, seed=n) for n in range(3)]
    target = tmp_path / "new" / "pairs.jsonl"
    assert write_jsonl(target, iter(records)) == 3
    lines = target.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(records))
    assert "日本" in lines[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "pairs.jsonl"
    write_jsonl(target, [{"n": 1}])

    def failing():
        yield {"n": 2}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(target, failing())
    assert target.read_text() == '{"n": 1}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_relative_image_paths_start_from_the_folder_of_the_file(tmp_path):
    target = tmp_path / "pairs.jsonl"
    write_jsonl(target, [{"images": ["a/x.png", "/y.png"], "n": 1}, {"n": 2}])
    assert read_records(target) == [{"images": [str(tmp_path / "a/x.png"), "/y.png"], "n": 1}, {"n": 2}]


def test_half_a_character_costs_no_file(tmp_path):
    rows = [{"text": "日本 \ud83d"}, {"text": "日本 \udc00 \U0001f600"}, {"text": "日本"}]
    assert write_jsonl(tmp_path / "a.jsonl", rows) == 3
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    assert "日本" in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[2]


BASE64 = base64.b64encode(encoded(two_pixels())).decode()


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (["a.png"], ["{}/a.png"]),
        (["b/a.png", "/c.png"], ["{}/b/a.png", "/c.png"]),
        ({"bytes": None, "path": "a.png"}, [{"bytes": None, "path": "{}/a.png"}]),
        ([{"path": "a.png"}, "/c.png"], [{"path": "{}/a.png"}, "/c.png"]),
        ([f"data:image/png;base64,{BASE64}"], [f"data:image/png;base64,{BASE64}"]),
        ([BASE64], [BASE64]),
    ],
)
def test_the_images_column_in_all_its_forms(stored, found, tmp_path):
    target = tmp_path / "pairs.jsonl"
    write_jsonl(target, [{"images": stored, "n": 1}])
    right = json.loads(json.dumps(found).replace("{}/", f"{tmp_path}/"))
    assert read_records(target) == [{"images": right, "n": 1}]


BAD_LINES = {
    '{"images": null}': "line 3: images: needs at least one image for each prompt, got None",
    '{"images": []}': "line 3: images: needs at least one image for each prompt, got []",
    '{"images": ["a.png", null]}': "line 3: images: needs at least one image for each prompt, got None",
    '{"images": ["a.png", 3]}': "line 3: images: needs a PIL image, a path or encoded bytes, got int",
    '{"images": 3}': "line 3: images: needs a PIL image, a path or encoded bytes, got int",
    '{"images": [["a.png"]]}': "line 3: images: needs a PIL image, a path or encoded bytes, got list",
    '{"images": {"path": null}}': "line 3: images: needs a dict with encoded bytes under 'bytes' or a path",
    '{"images": {"bytes": "iVBO"}}': "line 3: images: needs encoded bytes under 'bytes', got str",
    '{"images": "a.png"}': "line 3: images: needs a list, got the text 'a.png'",
    '{"images": ["https://example.org/a.png"]}': "line 3: images: needs an image or a path, got 'https://example.org",
    '{"images": {"path": "file:///a.png"}}': "line 3: images: needs an image or a path, got 'file:///a.png'",
    "[1]": "needs one JSON object a line, got list in line 3",
    "{": "needs one JSON object a line, line 3 is none (",
    '{"n": "\udce9"}': "needs one JSON object a line, line 3 is none ('utf-8' codec",  # a byte of Latin-1
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_that_cannot_be_used_is_named_or_skipped(line, tmp_path, caplog):
    target = tmp_path / "pairs.jsonl"
    target.write_text(f'{{"n": 1}}\n\n{line}\n{{"n": 2}}\n', encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as caught:
        read_records(target)
    assert str(caught.value).startswith(f"{target}: {BAD_LINES[line]}")
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        assert read_records(target, on_error="skip") == [{"n": 1}, {"n": 2}]
    (message,) = caplog.messages
    assert message.startswith(f"skipped a line of {target}: {BAD_LINES[line]}")


def test_records_need_a_known_way_to_treat_errors(tmp_path):
    for call in (read_records, read_jsonl):
        (tmp_path / "a.jsonl").write_text("")
        with pytest.raises(ValueError, match="on_error: needs 'raise' or 'skip', got 'ignore'"):
            call(tmp_path / "a.jsonl", on_error="ignore")
    with pytest.raises(ValueError, match="on_error: needs 'raise' or 'skip', got 'ignore'"):
        usable_rows([], ["images"], "ignore")


BAD_RECORDS = [
    (None, "needs a mapping from columns to values, got NoneType"),
    ("a.png", "needs a mapping from columns to values, got str"),
    ({}, "needs the columns images, prompt, got none"),
    ({"images": "{}/a.png", "prompt": None}, "needs the columns images, prompt, got images"),
    ({"images": "{}/a.png", "prompt": float("nan"), "n": 1}, "needs the columns images, prompt, got images, n"),
    ({"images": None, "prompt": "x"}, "needs the columns images, prompt, got prompt"),
    ({"images": [], "prompt": "x"}, "images: needs at least one image for each prompt, got []"),
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
