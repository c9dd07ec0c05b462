"""Preference pairs on disk, in the layout that TRL's vision preference training reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbdhs.data.jsonl import read_jsonl
from mmbdhs.data.messages import Messages, as_messages

_LOG = logging.getLogger("mmbdhs")


def preference_record(
    images: Sequence[str | os.PathLike[str]], prompt: str | Messages, chosen: str, sample: Any, seed: int
) -> dict[str, Any]:
    """Make one preference pair as a JSON-ready dict.

    TRL reads the columns images, prompt, chosen and rejected. The others say how the pair was made: key, seed,
    similarity, iterations, guided, visible_image_tokens, sentences.

    images: paths of the prompt's images, written to the record unchanged.
    prompt: a string, which becomes a user turn with the images first, or a message list, used unchanged.
    chosen: the chosen response.
    sample: a `BDHSSample`, which holds the rejected response.
    seed: the seed with which the sample was drawn.

    Raises ExampleError if a message list does not have one image placeholder for each image.
    """
    return {
        "images": [os.fspath(path) for path in images],
        "prompt": as_messages(prompt, len(images), "prompt"),
        "chosen": _response(chosen),
        "rejected": _response(sample.rejected),
        "key": sample.key,
        "seed": seed,
        "similarity": float(sample.similarity),
        "iterations": sample.iterations,
        "guided": sample.guided,
        "visible_image_tokens": list(sample.visible_image_tokens),
        "sentences": [asdict(sentence) for sentence in sample.sentences],
    }


def _response(text: str) -> Messages:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the preference records of a JSON Lines file.

    path: the file. Relative paths in the column images start from its folder; they are returned with that folder.

    Raises ValueError, naming the line, for a line that is not a JSON object.
    """
    records = read_jsonl(path)
    for record in records:
        if "images" in record:
            record["images"] = [os.fspath(Path(path).parent / image) for image in record["images"]]
    return records


def usable_rows(records: Iterable[Mapping[str, Any]], columns: Sequence[str], on_error: str = "raise") -> list[int]:
    """The indices of the records that have all columns and whose image files exist.

    records: mappings from columns to values.
    columns: the columns that a record needs, images among them.
    on_error: "raise" at the first record that cannot be used, or "skip" such records and log each of them.

    Raises ValueError, naming the row and what it needs, and if no record can be used.
    """
    usable = []
    for row, record in enumerate(records):
        problem = _problem(record, columns)
        if problem is None:
            usable.append(row)
        elif on_error == "raise":
            raise ValueError(f"records: row {row} {problem}")
        else:
            _LOG.warning("skipped row %d, which %s", row, problem)
    if not usable:
        raise ValueError("records: needs at least one that can be used, got none")
    return usable


def _problem(record: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Why a record cannot be used, or None if it can."""
    if any(record.get(column) is None for column in columns):
        return f"needs the columns {', '.join(columns)}, got {', '.join(record)}"
    images = record["images"] if isinstance(record["images"], (list, tuple)) else [record["images"]]
    for image in images:
        if isinstance(image, (str, os.PathLike)) and not os.path.isfile(image):
            return f"needs the image {os.fspath(image)!r}, which is not there"
    return None
