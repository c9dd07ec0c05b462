"""Rows of preference data as published, what they say, and the forms in which such data is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Image, Value
from helpers.small_images import encoded, two_pixels

PNG = encoded(two_pixels())
FORMS = ("json", "jsonl", "parquet", "folder of shards", "saved", "saved splits", "dataset", "list")
IN_MEMORY = ("dataset", "list")


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: str | dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [text(words)]}


def human(words: str) -> dict[str, str]:
    return {"from": "human", "value": words}


def gpt(words: str) -> dict[str, str]:
    return {"from": "gpt", "value": words}


def rating(visual: str | None, helpful: str | None, ethical: str | None) -> dict[str, dict[str, str | None]]:
    """The annotations of a completion in VLFeedback."""
    found = {"Visual Faithfulness": visual, "Helpfulness": helpful, "Ethical Considerations": ethical}
    return {aspect: {"Rating": value, "Rationale": "Because."} for aspect, value in found.items()}


IMAGE = {"type": "image"}
TALK = [human("<image>\nWhat colour is the cat?"), gpt("Black."), human("Where is it?"), gpt("On a mat.")]
SPOILT = [human("<image>\nWhat colour is the cat?"), gpt("White."), human("Where is it?"), gpt("On a car.")]
TURNS = [user(IMAGE, "What colour is the cat?"), assistant("Black."), user("Where is it?")]
ORIGIN = {"ds_name": "RLHF-V", "origin_dataset": "VQAv2", "origin_split": "train", "image_path": "v/7.jpg"}
ANSWERS = {"question": "How many cats?", "chosen": "One cat.", "rejected": "Two cats."}
ASKED = {"prompt": "How many cats?", "chosen": "One cat.", "rejected": "Two cats."}

# (8 + 1) / 2 = 4.5 has the highest mean of the numbers, 1 the lowest; "N/A" and an absent rating do not count.
COMPLETIONS = [
    {"annotations": rating("3", "4", "5"), "model": "a", "response": "Four on average."},
    {"annotations": rating("N/A", "N/A", "N/A"), "model": "b", "response": "Without a rating."},
    {"annotations": rating("8", "1", "N/A"), "model": "c", "response": "Four and a half."},
    {"annotations": rating("1", None, "1"), "model": "d", "response": "One."},
    {"annotations": rating("1", "1", "1"), "model": "e", "response": "One again."},
]
COLUMNAR = {name: [one[name] for one in COMPLETIONS] for name in ("annotations", "model", "response")}
RATED = {"prompt": "Describe it.", "chosen": "Four and a half.", "rejected": "One."}
_MODELS = {"id": "svit-7", "prompt": "Describe it.", "models": ["a", "b", "c", "d", "e"], "img_path": "a.png"}

TRL = {"prompt": [user(IMAGE, "How many cats?")], "chosen": [assistant("One cat.")], "rejected": "Two cats."}

# layout: (row, its record without the images)
PUBLISHED: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "LLaVA-Instruct": [
        (
            {"id": "33471", "image": "a.png", "conversations": TALK},
            {"prompt": TURNS, "chosen": "On a mat.", "id": "33471"},
        )
    ],
    "POVID": [
        (
            {"id": "33471", "image": "a.png", "conversations": TALK, "rejected_conversations": SPOILT},
            {"prompt": TURNS, "chosen": "On a mat.", "rejected": "On a car.", "id": "33471"},
        )
    ],
    "RLHF-V": [({**ORIGIN, "image": "a.png", "text": json.dumps(ANSWERS), "idx": 7}, {**ASKED, "id": "7"})],
    "RLAIF-V": [({**ORIGIN, "image": "a.png", **ANSWERS, "idx": 7}, {**ASKED, "id": "7"})],
    "VLFeedback": [
        ({**_MODELS, "completions": COLUMNAR}, {**RATED, "id": "svit-7"}),
        ({**_MODELS, "completions": COMPLETIONS}, {**RATED, "id": "svit-7"}),
    ],
    "LLaVA-Human-Preference": [
        (
            {
                "id": "9",
                "image": "a.png",
                "conversations": TALK,
                "output_1": gpt("On a car."),
                "output_2": gpt("On the mat."),
                "preference": 2,
            },
            {"prompt": TURNS, "chosen": "On the mat.", "rejected": "On a car.", "id": "9"},
        )
    ],
    "TRL vision preference": [
        ({"images": ["a.png"], **TRL, "key": "k", "n": 3}, {**TRL, "key": "k", "n": 3}),
        ({"image": "a.png", **TRL, "id": 5}, {**TRL, "id": "5"}),
    ],
}


def stored(form: str, rows: list[Any], folder: Path, features: Mapping[str, Any] | None = None) -> Any:
    """The rows in one of the `FORMS`, as what `open_records` takes.

    features: types of some columns, in the forms that `datasets` writes.
    """
    if form == "list":
        return rows
    if form == "json":
        (folder / "rows.json").write_text(json.dumps(rows))
        return folder / "rows.json"
    if form == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        return folder / "rows.jsonl"
    dataset = Dataset.from_list(rows)
    for name, feature in (features or {}).items():
        dataset = dataset.cast_column(name, feature)
    if form == "parquet":
        dataset.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if form == "folder of shards":
        for number in range(len(rows)):
            dataset.select([number]).to_parquet(folder / f"train-{number:05}-of-{len(rows):05}.parquet")
        return folder
    if form == "saved":
        dataset.save_to_disk(folder)
    if form == "saved splits":
        datasets.DatasetDict({"test": dataset.select([0]), "train": dataset}).save_to_disk(folder)
    return dataset if form == "dataset" else folder


def with_bytes(row: dict[str, Any], column: str = "image") -> tuple[dict[str, Any], Features]:
    """The row with its image as encoded bytes, and the types under which `datasets` publishes it."""
    return row | {column: {"bytes": PNG, "path": "a.png"}}, Features({column: Image(), "idx": Value("int64")})
