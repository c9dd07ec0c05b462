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
    images: Sequence[str | os.PathLike], prompt: str | list[dict], chosen: str, sample: Any, seed: int
) -> dict[str, Any]:
    """One pair as a JSON-ready dict: `images`, `prompt`, `chosen`, `rejected` as TRL reads them, and the columns that
    make the pair traceable: key, seed, similarity, iterations, guided, visible_image_tokens, sentences.

    images: paths, as they shall stand in the record.
    prompt: text, put into one user turn behind an image place per image, or a message list, taken as it is.
    sample: a `BDHSSample`. seed: that it was drawn with.

    Raises ValueError if a message list holds another number of image places than there are images.
    """
    messages = [_message("user", prompt, len(images))] if isinstance(prompt, str) else prompt
    places = sum(part.get("type") == "image" for part in _parts(messages))
    if places != len(images):
        raise ValueError(f"prompt: needs one image place per image, {len(images)}, got {places}")
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


def _parts(messages: list[dict]) -> list[dict]:
    return [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a JSON Lines file. `images` that are relative paths are taken from the file's own folder. Raises
    ValueError that names the line for one that is no JSON object."""
    records = read_jsonl(path)
    for record in records:
        if "images" in record:
            record["images"] = [os.fspath(Path(path).parent / image) for image in record["images"]]
    return records


def usable_rows(records: Iterable[Mapping[str, Any]], columns: Sequence[str], on_error: str = "raise") -> list[int]:
    """The numbers of the records that have all `columns`, and whose images, where they are paths, are there.

    Raises ValueError that names row and lack, or with on_error="skip" if nothing is left; what is skipped is logged."""
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
