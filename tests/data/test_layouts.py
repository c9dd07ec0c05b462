"""What each published layout says: records worked out by hand, and rows that cannot be used."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.published_rows import (
    ANSWERS,
    COMPLETIONS,
    FORMS,
    IMAGE,
    IN_MEMORY,
    PNG,
    PUBLISHED,
    RATED,
    SPOILT,
    TALK,
    TRL,
    TURNS,
    gpt,
    human,
    rating,
    stored,
    user,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbdhs.data import ChatPrompt, as_chat, as_response, open_records
from mmbdhs.data.layouts import LAYOUTS
from mmbdhs.errors import ExampleError, TextOnlyError

ROWS = [
    pytest.param(name, *row, id=f"{name} {number}")
    for name, rows in PUBLISHED.items()
    for number, row in enumerate(rows)
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("layout", "row", "record"), ROWS)
def test_a_published_row_in_every_form(layout, row, record, form, tmp_path):
    records = open_records(stored(form, [row, row], tmp_path))
    assert (records.layout, len(records)) == (layout, 2)
    image = "a.png" if form in IN_MEMORY else str(tmp_path / "a.png")
    assert list(records) == [{"images": [image], **record}] * 2
    assert [records.without_bytes(number) for number in (0, 1)] == list(records)
    assert set(records[0]) <= set(records.columns)
    as_chat(ChatPrompt.of_record(records[0]), 1)


@pytest.mark.parametrize("form", ["parquet", "folder of shards", "saved", "saved splits", "dataset"])
@pytest.mark.parametrize("layout", ["RLHF-V", "RLAIF-V"])
def test_an_image_as_bytes_in_every_form_that_holds_bytes(layout, form, tmp_path):
    from datasets import Image

    row, record = PUBLISHED[layout][0]
    image = {"bytes": PNG, "path": "a.png"}
    records = open_records(stored(form, [row | {"image": image}] * 2, tmp_path, {"image": Image()}))
    assert records[1] == {"images": [image], **record}
    assert records.without_bytes(1) == {"images": [image | {"bytes": b""}], **record}


def llava(*turns: dict[str, str], image: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"image": image, "conversations": list(turns), **more}


def test_first_last_and_every_turn():
    rows = [llava(*TALK), llava(human("What?"), gpt("A dog."))]
    first = {"prompt": TURNS[:1], "chosen": "Black."}
    last = {"prompt": TURNS, "chosen": "On a mat."}
    dog = {"prompt": [user(IMAGE, "What?")], "chosen": "A dog."}
    for turns, expected in (("first", [first, dog]), ("last", [last, dog]), ("every", [first, last, dog])):
        records = open_records(rows, turns=turns)
        assert list(records) == [{"images": ["a.png"], **record} for record in expected]
    assert [records.row(number) for number in range(3)] == [0, 0, 1]
    assert records[-1] == records[2] and records[:2] == [records[0], records[1]]
    with pytest.raises(IndexError):
        records[3]


def test_every_turn_of_povid_has_its_rejected_response():
    row = llava(*TALK, rejected_conversations=SPOILT)
    for turns, expected in (("first", ["White."]), ("last", ["On a car."]), ("every", ["White.", "On a car."])):
        assert [record["rejected"] for record in open_records([row], turns=turns)] == expected


@pytest.mark.parametrize(
    ("turns", "images", "prompt"),
    [
        ([human("<image>\nWhat?")], ["a"], [user(IMAGE, "What?")]),
        ([human("What?\n<image>")], ["a"], [user("What?", IMAGE)]),
        ([human("<image>")], ["a"], [user(IMAGE)]),
        ([human("What?")], ["a"], [user(IMAGE, "What?")]),
        ([human("What?")], ["a", "b"], [user(IMAGE, IMAGE, "What?")]),
        ([human("Is <image> like <image>?")], ["a", "b"], [user("Is ", IMAGE, " like ", IMAGE, "?")]),
        ([human("<image>\n<image>\nAlike?")], ["a", "b"], [user(IMAGE, IMAGE, "Alike?")]),
        (
            [{"from": "system", "value": "Be brief."}, human("What?")],
            ["a"],
            [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, user(IMAGE, "What?")],
        ),
    ],
)
def test_images_stand_where_they_are_written(turns, images, prompt):
    (record,) = open_records([llava(*turns, gpt("A cat."), image=images)])
    assert record == {"images": images, "prompt": prompt, "chosen": "A cat."}


def test_images_of_later_turns_are_left_out_of_the_record():
    row = llava(human("<image>One?"), gpt("Yes."), human("<image>Two?"), gpt("No."), image=["a", "b"])
    assert [record["images"] for record in open_records([row], turns="every")] == [["a"], ["a", "b"]]
    late = llava(human("Hi"), gpt("Hello."), human("<image>What?"), gpt("A cat."))
    records = open_records([late], turns="every")
    with pytest.raises(TextOnlyError, match="example 0: turn 0: conversations: needs an image before the chosen turn"):
        records[0]
    assert records[1]["chosen"] == "A cat."


def test_ids_and_keys_of_mixed_types():
    ids = ["x", 7, 7.5, None, math.nan]
    records = open_records([llava(human("What?"), gpt("A."), id=one, key=one) for one in ids])
    assert [record.get("id") for record in records] == ["x", "7", "7.5", None, None]
    assert [record.get("key") for record in records] == ["x", 7, 7.5, None, None]
    assert records.source_id(1) == "7"
    asked = open_records([{"question_id": 3, "image": "a", "prompt": "What?", "chosen": "A."}])
    assert asked[0]["id"] == asked.source_id(0) == "3"


def test_a_table_of_ratings_picks_the_largest_gap_and_the_first_of_equals():
    rows = [COMPLETIONS[::-1], COMPLETIONS[1:4]]
    records = open_records([{"prompt": "Describe it.", "img_path": "a", "completions": one} for one in rows])
    assert records[0] == {"images": ["a"], **RATED, "rejected": "One again."}
    assert records[1] == {"images": ["a"], **RATED}
    numbers = [{"annotations": rating(score, 1, True), "response": f"{score}"} for score in (2, 10**400, "inf", 5.0)]
    (record,) = open_records([{"prompt": "Describe it.", "img_path": "a", "completions": numbers}])
    assert (record["chosen"], record["rejected"]) == ("5.0", "1" + "0" * 400)


def test_the_first_output_may_be_the_preferred_one_and_the_last_turn_missing():
    row, record = PUBLISHED["LLaVA-Human-Preference"][0]
    for one in (row, row | {"conversations": TALK[:-1]}):
        (found,) = open_records([one | {"preference": 1}])
        assert found == {"images": ["a.png"], **record, "chosen": "On a car.", "rejected": "On the mat."}


def test_what_else_a_record_of_trl_has_is_kept():
    more = {"tools": "[]", "chat_template_kwargs": {"a": 1}, "reference_logps": [-1.0, -2.0], "lost": None}
    records = open_records([{"images": ["a"], **TRL, **more}])
    assert records[0] == {"images": ["a"], **TRL, **{name: more[name] for name in list(more)[:3]}}
    assert {"tools", "reference_logps", "images", "prompt", "chosen"} <= set(records.columns)


def test_keys_that_arrow_adds_to_messages_are_dropped():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    (record,) = open_records([{"images": ["a"], "prompt": [{"role": "user", "content": parts}], "chosen": "A cat."}])
    assert record["prompt"] == [user(IMAGE, "What?")]


def test_an_unknown_layout_is_shown_with_the_known_ones():
    with pytest.raises(ValueError) as caught:
        open_records([{"picture": "a.png", "caption": "A cat."}])
    first, *lines = str(caught.value).splitlines()
    assert first == "data: needs the columns of a layout below, got picture, caption"
    assert "  LLaVA-Instruct: image or images, conversations" in lines
    assert len(lines) == len(PUBLISHED) and all(any(f"  {name}: " in line for line in lines) for name in PUBLISHED)


@pytest.mark.parametrize("image", [None, math.nan, "", [], [None], {"bytes": None, "path": None}])
@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_row_without_an_image_is_text_only(layout, image):
    good = PUBLISHED[layout][0][0]
    column = next(name for name in ("images", "img_path", "image") if name in good)
    records = open_records([good, good | {column: image}, {name: good[name] for name in good if name != column}])
    for number in (1, 2):
        with pytest.raises(TextOnlyError, match=f"example {number}: .*needs an image, got none") as caught:
            records[number]
        assert caught.value.index == number


CASES = [
    # layout, what is changed in its row, message
    ("LLaVA-Instruct", {"conversations": None}, "conversations: needs a list of objects, got NoneType"),
    ("LLaVA-Instruct", {"conversations": ["Hi"]}, "conversations: needs a list of objects, got 'Hi' in it"),
    ("LLaVA-Instruct", {"conversations": []}, "conversations: needs a turn from human, got none"),
    ("LLaVA-Instruct", {"conversations": [human("Hi")]}, "conversations: needs 1 turn(s) from gpt, got 0"),
    ("LLaVA-Instruct", {"conversations": [human("Hi"), gpt(" ")]}, "conversations: needs text, got ' '"),
    (
        "LLaVA-Instruct",
        {"conversations": [human("Hi"), gpt(None)]},
        "conversations: needs text as the value of a turn, got",
    ),
    (
        "LLaVA-Instruct",
        {"conversations": [{"from": 3}]},
        "conversations: needs turns from system, human, user, gpt, assistant",
    ),
    (
        "LLaVA-Instruct",
        {"conversations": [gpt("Hi"), human("Hi")]},
        "conversations: needs a turn from human right before the chosen one, got no turn",
    ),
    (
        "LLaVA-Instruct",
        {"conversations": [{"from": "system", "value": "Hi"}, gpt("Hi"), human("Hi")]},
        "conversations: needs a turn from human right before the chosen one, got system",
    ),
    (
        "LLaVA-Instruct",
        {"image": ["a", "b"]},
        "conversations: needs <image> for each image or not at all, got it 1 time(s) for 2",
    ),
    ("LLaVA-Instruct", {"image": 3}, "images: needs a PIL image, a path or encoded bytes, got int"),
    ("LLaVA-Instruct", {"image": ["a", None]}, "images: needs at least one image for each prompt, got None"),
    (
        "LLaVA-Instruct",
        {"image": "http://a.org/b"},
        "images: needs an image or a path, got 'http://a.org/b', which is a URL",
    ),
    (
        "LLaVA-Instruct",
        {"conversations": [human("Hi"), gpt("A"), gpt("B")]},
        "conversations: needs a turn from human right before the chosen one, got assistant",
    ),
    ("POVID", {"rejected_conversations": None}, "rejected_conversations: needs a list of objects, got NoneType"),
    ("POVID", {"rejected_conversations": TALK[:2]}, "rejected_conversations: needs the 2 turn(s) from gpt of conv"),
    ("RLHF-V", {"text": "{"}, "text: needs an object as JSON text, got '{' ("),
    ("RLHF-V", {"text": "[1]"}, "text: needs an object, got list"),
    ("RLHF-V", {"text": math.nan}, "text: needs an object, got float"),
    ("RLHF-V", {"text": json.dumps(ANSWERS | {"chosen": None})}, "text.chosen: needs text, got NoneType"),
    ("RLAIF-V", {"question": None}, "question: needs text, got NoneType"),
    ("RLAIF-V", {"rejected": math.nan}, "rejected: needs text, got float"),
    ("RLAIF-V", {"chosen": "  "}, "chosen: needs text, got '  '"),
    ("VLFeedback", {"prompt": ["What?"]}, "prompt: needs text, got list"),
    ("VLFeedback", {"completions": "x"}, "completions: needs a list of objects, got 'x'"),
    (
        "VLFeedback",
        {"completions": COMPLETIONS[:2]},
        "completions: needs two responses of different mean ratings, got 1",
    ),
    (
        "VLFeedback",
        {"completions": COMPLETIONS[3:]},
        "completions: needs two responses of different mean ratings, got 2",
    ),
    ("VLFeedback", {"completions": []}, "completions: needs two responses of different mean ratings, got 0"),
    ("LLaVA-Human-Preference", {"preference": 3}, "preference: needs 1 or 2, got 3"),
    ("LLaVA-Human-Preference", {"preference": True}, "preference: needs 1 or 2, got True"),
    ("LLaVA-Human-Preference", {"output_1": None}, "output_1: needs an object, got NoneType"),
    ("LLaVA-Human-Preference", {"output_2": {"value": ""}}, "output_2.value: needs text, got ''"),
    (
        "TRL vision preference",
        {"prompt": None},
        "prompt: needs a string or a list of messages with a role, got NoneType",
    ),
    (
        "TRL vision preference",
        {"prompt": [user("Hi")]},
        "prompt: needs as many image placeholders as images, got 0 for 1",
    ),
    ("TRL vision preference", {"chosen": None}, "chosen: needs a response, got none"),
    ("TRL vision preference", {"chosen": ""}, "chosen: needs text, got ''"),
    ("TRL vision preference", {"rejected": 3}, "rejected: needs a string or a list of messages with a role, got int"),
    ("TRL vision preference", {"tools": "["}, "tools: needs a JSON text, got '['"),
    ("TRL vision preference", {"images": [["a"]]}, "images: needs a PIL image, a path or encoded bytes, got list"),
]


@pytest.mark.parametrize(("layout", "change", "message"), CASES)
def test_a_row_that_cannot_be_used_says_why(layout, change, message):
    good = PUBLISHED[layout][0][0]
    records = open_records([good, good | change])
    with pytest.raises(ExampleError) as caught:
        records[1]
    assert caught.value.reason.startswith(message) and caught.value.index == 1


@pytest.mark.parametrize("row", [None, 3, "x", [1]])
def test_a_row_that_is_no_object_says_so(row):
    records = open_records([PUBLISHED["RLAIF-V"][0][0], row])
    with pytest.raises(ExampleError, match=f"needs a mapping from columns to values, got {type(row).__name__}"):
        records[1]
    assert records.source_id(1) is None


_NAMES = ("from", "value", "role", "content", "type", "text", "bytes", "path", "annotations", "Rating", "response")
_WORDS = st.one_of(st.text(max_size=5), st.sampled_from(("human", "gpt", "image", "user", "assistant", "<image>", "3")))
_PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _WORDS)
_JSON = st.recursive(
    _PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3)),
    max_leaves=6,
)


def changed(draw: Any, value: Any) -> Any:
    """The value with a part of it, at any depth, replaced by any JSON value."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, (dict, list)) or not value:
        return draw(_JSON)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    value[place] = changed(draw, value[place])
    return value


@pytest.mark.parametrize("layout", PUBLISHED)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_json_in_any_column_gives_a_record_or_an_example_error(layout, data):
    good = data.draw(st.sampled_from([row for row, _ in PUBLISHED[layout]]))
    row = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(row)))
        row[name] = changed(data.draw, row[name])
    records = open_records([good, row], turns=data.draw(st.sampled_from(("first", "last", "every"))))
    assert records.layout == layout
    for number in range(1, len(records)):
        try:
            record = records[number]
        except ExampleError:
            continue
        as_chat(ChatPrompt.of_record(record), len(record["images"]))
        assert as_response(record["chosen"], "chosen")


def test_the_documentation_has_the_table_of_layouts():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    lines = page.partition("| layout | columns that recognise it")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[: len(LAYOUTS)]]
    assert cells == [[layout.name, re.sub(r"(\w+)(?=,|$| or )", r"`\1`", layout.needs)] for layout in LAYOUTS]
    assert not lines[len(LAYOUTS)]
