"""Preference pairs on disk, in the layout that TRL's vision preference training reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbdhs.data.jsonl import read_jsonl

_LOG = logging.getLogger("mmbdhs")


def preference_record(
    images: Sequence[str | os.PathLike[str]], prompt: str | list[dict[str, Any]], chosen: str, sample: Any, seed: int
) -> dict[str, Any]:
    """A pair as a JSON-ready dict: `images`, `prompt`, `chosen`, `rejected` as TRL reads them, and columns by which the
    pair can be traced (key, seed, similarity, iterations, guided, visible_image_tokens, sentences).

    images: paths, which the record keeps unchanged.
    prompt: text, put into one user turn after a placeholder for each image, or a message list, kept unchanged.
    chosen: the chosen response.
    sample: a `BDHSSample` with the rejected response.
    seed: with which it was drawn.

    Raises ValueError if a message list has another number of placeholders than there are images.
    """
    messages = [_message("user", prompt, len(images))] if isinstance(prompt, str) else prompt
    places = sum(part.get("type") == "image" for part in _parts(messages))
    if places != len(images):
        raise ValueError(f"prompt: needs one image placeholder per image, {len(images)}, got {places}")
    return {
        "images": [os.fspath(path) for path in images],
        "prompt": messages,
        "chosen": [_message("assistant", chosen)],
        "rejected": [_message("assistant", sample.rejected)],
        "key": sample.key,
        "seed": seed,
        "similarity": float(sample.similarity),
        "iterations": sample.iterations,
        "guided": sample.guided,
        "visible_image_tokens": list(sample.visible_image_tokens),
        "sentences": [asdict(sentence) for sentence in sample.sentences],
    }


def _message(role: str, text: str, images: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def _parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; relative paths in `images` are relative to the file's folder.

    Raises ValueError that names the line for a line that is not a JSON object.
    """
    records = read_jsonl(path)
    for record in records:
        if "images" in record:
            record["images"] = [os.fspath(Path(path).parent / image) for image in record["images"]]
    return records


def usable_rows(records: Iterable[Mapping[str, Any]], columns: Sequence[str], on_error: str = "raise") -> list[int]:
    """The numbers of the records that have all `columns` and whose images, where they are paths, exist.

    on_error: "raise" a ValueError that names the row and what it lacks, or "skip" and log the row.

    Raises ValueError if no row is left.
    """
    usable = []
    for row, record in enumerate(records):
        lack = _lack(record, columns)
        if lack is None:
            usable.append(row)
        elif on_error == "raise":
            raise ValueError(f"records: row {row} {lack}")
        else:
            _LOG.warning("skipped row %d, which %s", row, lack)
    if not usable:
        raise ValueError("records: needs at least one that can be used, got none")
    return usable


def _lack(record: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    if any(record.get(column) is None for column in columns):
        return f"needs the columns {', '.join(columns)}, got {', '.join(record)}"
    images = record["images"] if isinstance(record["images"], (list, tuple)) else [record["images"]]
    for image in images:
        if isinstance(image, (str, os.PathLike)) and not os.path.isfile(image):
            return f"needs the image {os.fspath(image)!r}, which is not there"
    return None
