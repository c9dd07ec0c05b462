"""The layouts in which preference data is published, and what each makes of a row.

A layout is recognised by its columns. Its function turns a row into the columns prompt, chosen and, where the layout
has one, rejected of TRL's vision preference layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from mmbdhs.checks import kind_of
from mmbdhs.data.conversations import answer_count, conversation, objects, placeholder_count, split_conversation
from mmbdhs.data.images import image_list
from mmbdhs.data.jsonl import Row
from mmbdhs.data.keys import is_null
from mmbdhs.data.messages import ChatPrompt, as_chat, as_response
from mmbdhs.errors import ExampleError, TextOnlyError

Read: TypeAlias = Callable[[Row, list[Any], int], Row]
"""A function of a row, its images and the number of the assistant's turn to choose (from 0; -1 for the last)."""


@dataclass(frozen=True)
class Layout:
    """A layout of preference data.

    name: as the data set is known.
    columns: the columns that recognise it, together with one of images.
    images: columns with an image or a list of images, of which the first that a row has counts.
    responses: the columns of its records that hold responses, in TRL's names.
    read: makes prompt and responses of a row, and may leave images out that come after the prompt. Raises ExampleError.
    turns: the column with the conversation of which any turn may be chosen.
    keeps_columns: whether records have the row's other columns too.
    """

    name: str
    columns: tuple[str, ...]
    images: tuple[str, ...]
    responses: tuple[str, ...]
    read: Read
    turns: str | None = None
    keeps_columns: bool = False

    def matches(self, columns: Collection[str]) -> bool:
        """Whether data with these columns is in this layout."""
        return set(self.columns) <= set(columns) and any(name in columns for name in self.images)

    @property
    def needs(self) -> str:
        """The columns that recognise it, as a text."""
        return ", ".join((" or ".join(self.images), *self.columns))


def find_layout(columns: Collection[str]) -> Layout:
    """The layout of data with these columns; the more special one where several match.

    Raises ValueError with the columns, and those of all layouts.
    """
    for layout in LAYOUTS:
        if layout.matches(columns):
            return layout
    lines = "".join(f"\n  {layout.name}: {layout.needs}" for layout in LAYOUTS)
    raise ValueError(f"data: needs the columns of a layout below, got {', '.join(columns) or 'none'}{lines}")


def row_images(row: Mapping[str, Any], names: Collection[str]) -> list[Any]:
    """The images of a row, from the first of the columns that has some. Raises TextOnlyError if none has."""
    found = next((row[name] for name in names if name in row and not has_no_image(row[name])), None)
    if found is None:
        raise TextOnlyError(f"{' or '.join(names)}: needs an image, got none: the row is text-only")
    return image_list(found)


def has_no_image(value: Any) -> bool:
    """Whether a value stands for a missing image: None, NaN, "", {bytes, path} without either, or a list of these."""
    if isinstance(value, (list, tuple)):
        return all(map(has_no_image, value))
    if isinstance(value, Mapping):
        return value.keys() <= {"bytes", "path"} and all(map(has_no_image, value.values()))
    return is_null(value) or (isinstance(value, str) and not value)


def given_columns(row: Mapping[str, Any]) -> Row:
    """The row without the columns that are None or NaN."""
    return {name: value for name, value in row.items() if isinstance(value, (list, tuple)) or not is_null(value)}


def _read_trl(row: Row, images: list[Any], turn: int) -> Row:
    chat = as_chat(ChatPrompt.of_record({"prompt": None} | row), len(images), "prompt")
    record = {"prompt": row["prompt"] if isinstance(row["prompt"], str) else chat.messages}
    for name in ("chosen", "rejected"):
        if name in given_columns(row):
            as_response(row[name], name)
            record[name] = row[name]
    return record


def _read_llava_instruct(row: Row, images: list[Any], turn: int) -> Row:
    messages = conversation(row.get("conversations"), "conversations", len(images))
    prompt, chosen = split_conversation(messages, turn, "conversations")
    seen = images[: placeholder_count(prompt)]  # those of later turns belong to neither prompt nor response
    return {"images": seen, "prompt": prompt, "chosen": as_response(chosen, "conversations")}


def _read_povid(row: Row, images: list[Any], turn: int) -> Row:
    column = "rejected_conversations"
    record = _read_llava_instruct(row, images, turn)
    messages = conversation(row.get(column), column, len(images))
    chosen_count, rejected_count = answer_count(row["conversations"]), answer_count(row[column])
    if chosen_count != rejected_count:
        raise ExampleError(
            f"{column}: needs the {chosen_count} turn(s) from gpt of conversations, got {rejected_count}"
        )
    return record | {"rejected": as_response(split_conversation(messages, turn, column)[1], column)}


def _read_llava_human_preference(row: Row, images: list[Any], turn: int) -> Row:
    messages = conversation(row.get("conversations"), "conversations", len(images))
    if messages[-1]["role"] == "assistant":  # a placeholder for the outputs
        messages.pop()
    as_chat(messages, len(images), "conversations")
    preference = row.get("preference")
    if isinstance(preference, bool) or preference not in (1, 2):
        raise ExampleError(f"preference: needs 1 or 2, got {preference!r}")
    outputs = [_text(_object(row, name), "value", name) for name in ("output_1", "output_2")]
    chosen, rejected = outputs if preference == 1 else outputs[::-1]
    return {"prompt": messages, "chosen": chosen, "rejected": rejected}


def _read_rlhf_v(row: Row, images: list[Any], turn: int) -> Row:
    return _question(_object(row, "text"), "text")


def _read_rlaif_v(row: Row, images: list[Any], turn: int) -> Row:
    return _question(row)


def _question(row: Mapping[str, Any], column: str = "") -> Row:
    return {
        "prompt": _text(row, "question", column),
        "chosen": _text(row, "chosen", column),
        "rejected": _text(row, "rejected", column),
    }


def _read_vlfeedback(row: Row, images: list[Any], turn: int) -> Row:
    means = [(_mean_rating(one), one) for one in objects(row.get("completions"), "completions")]
    rated = [(mean, one) for mean, one in means if mean is not None]
    chosen = max(rated, key=lambda pair: pair[0], default=(0.0, {}))
    rejected = min(rated, key=lambda pair: pair[0], default=chosen)
    if chosen[0] == rejected[0]:
        raise ExampleError(
            f"completions: needs two responses of different mean ratings, got {len(rated)} with ratings and no two "
            "that differ"
        )
    texts = [_text(one, "response", "completions") for _, one in (chosen, rejected)]
    return {"prompt": _text(row, "prompt"), "chosen": texts[0], "rejected": texts[1]}


def _mean_rating(completion: Mapping[str, Any]) -> float | None:
    """The mean over the aspects whose rating is a number; None if there is none."""
    aspects = completion.get("annotations")
    found = aspects.values() if isinstance(aspects, Mapping) else ()
    ratings = [
        rating for one in found if isinstance(one, Mapping) and (rating := _rating(one.get("Rating"))) is not None
    ]
    return fmean(ratings) if ratings else None


def _rating(value: Any) -> float | None:
    try:
        rating = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) else None


def _text(row: Mapping[str, Any], name: str, column: str = "") -> str:
    """The text under a name. Raises ExampleError that names the column for anything else, and for white space alone.

    column: the column that holds the object, if it is not a row.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ExampleError(f"{f'{column}.{name}' if column else name}: needs text, got {kind_of(value)}")
    return value


def _object(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object in a column, which may be JSON text. Raises ExampleError for anything else."""
    value = row.get(name)
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ExampleError(f"{name}: needs an object as JSON text, got {kind_of(value)} ({error})") from error
    if not isinstance(found, Mapping):
        raise ExampleError(f"{name}: needs an object, got {kind_of(found)}")
    return found


_PAIR = ("chosen", "rejected")
# The more special before the more general.
LAYOUTS = (
    Layout("VLFeedback", ("prompt", "completions"), ("img_path",), _PAIR, _read_vlfeedback),
    Layout("TRL vision preference", ("prompt",), ("images", "image"), _PAIR, _read_trl, keeps_columns=True),
    Layout(
        "LLaVA-Human-Preference",
        ("conversations", "output_1", "output_2", "preference"),
        ("image",),
        _PAIR,
        _read_llava_human_preference,
    ),
    Layout("POVID", ("conversations", "rejected_conversations"), ("image",), _PAIR, _read_povid, "conversations"),
    Layout("RLHF-V", ("ds_name", "text"), ("image",), _PAIR, _read_rlhf_v),
    Layout("RLAIF-V", ("question", "chosen", "rejected"), ("image",), _PAIR, _read_rlaif_v),
    Layout(
        "LLaVA-Instruct", ("conversations",), ("image", "images"), ("chosen",), _read_llava_instruct, "conversations"
    ),
)
