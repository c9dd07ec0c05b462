"""Records in TRL's vision preference layout, and files that are complete or absent."""

import json
from types import SimpleNamespace

import pytest

from mmbdhs.data import ChatPrompt, as_chat, preference_record, read_jsonl, write_jsonl
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


def test_half_a_character_costs_no_file(tmp_path):
    rows = [{"text": "日本 \ud83d"}, {"text": "日本 \udc00 \U0001f600"}, {"text": "日本"}]
    assert write_jsonl(tmp_path / "a.jsonl", rows) == 3
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    assert "日本" in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[2]
