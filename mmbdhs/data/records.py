"""Preference pairs on disk, in the layout that TRL's vision preference training reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbdhs.checks import check_on_error
from mmbdhs.data.images import image_list, locate_image, require_file
from mmbdhs.data.jsonl import read_jsonl
from mmbdhs.data.keys import is_null
from mmbdhs.data.messages import Messages, Prompt, as_chat
from mmbdhs.data.pair_faults import pair_faults
from mmbdhs.errors import ExampleError

_LOG = logging.getLogger("mmbdhs")


def preference_record(
    images: Sequence[str | os.PathLike[str]], prompt: Prompt, chosen: str, sample: Any, seed: int
) -> dict[str, Any]:
    """Make one preference pair as a JSON-ready dict.

    TRL reads the columns images, prompt, chosen and rejected. The others say how the pair was made: key, seed,
    similarity, iterations, guided, visible_image_tokens, sentences, and for noisy images noise_steps and noise_range.
    `pair_faults` says what is wrong with a pair that teaches nothing.

    images: paths of the prompt's images, written to the record unchanged.
    prompt: a string, which becomes a user turn with the images first, a message list, or a ChatPrompt, of which tools
        and chat_template_kwargs become columns too.
    chosen: the chosen response.
    sample: a `BDHSSample`, which holds the rejected response.
    seed: the seed with which the sample was drawn.

    Raises ExampleError if a message list does not have one image placeholder for each image.
    """
    chat = as_chat(prompt, len(images), "prompt")
    columns = {"tools": chat.tools, "chat_template_kwargs": chat.chat_template_kwargs}
    columns |= {name: getattr(sample, name, None) for name in ("noise_steps", "noise_range")}
    columns["pair_faults"] = list(pair_faults((chosen, sample.rejected)))
    return {
        "images": [os.fspath(path) for path in images],
        "prompt": chat.messages,
        "chosen": _response(chosen),
        "rejected": _response(sample.rejected),
        "key": sample.key,
        "seed": seed,
        "similarity": float(sample.similarity),
        "iterations": sample.iterations,
        "guided": sample.guided,
        "visible_image_tokens": list(sample.visible_image_tokens),
        "sentences": [asdict(sentence) for sentence in sample.sentences],
    } | {name: value for name, value in columns.items() if value}


def _response(text: str) -> Messages:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def read_records(path: str | os.PathLike[str], on_error: str = "raise") -> list[dict[str, Any]]:
    """Read the preference records of a JSON Lines file.

    path: the file. The column images holds a list of images: paths, dicts with a path, data: URIs or base64 text.
        Relative paths are returned with the file's folder.
    on_error: "raise" at the first line that cannot be used, or "skip" such lines and log each of them.

    Raises ValueError that names the file and the line, for a line that is not a JSON object, and for a column images
    with a URL, with nothing, or with anything else.
    """
    folder = Path(path).parent
    return read_jsonl(path, lambda record: _with_folder(record, folder), on_error)


def _with_folder(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "images" not in record:
        return record
    if isinstance(record["images"], str):
        raise ExampleError(f"images: needs a list, got the text {record['images'][:80]!r}. Put it into a list")
    return record | {"images": [_image_with_folder(image, folder) for image in image_list(record["images"])]}


def _image_with_folder(image: Any, folder: Path) -> Any:
    located = locate_image(image)
    if not isinstance(located, str):
        return image
    path = os.fspath(folder / located)
    return image | {"path": path} if isinstance(image, dict) else path


def usable_rows(records: Iterable[Any], columns: Sequence[str], on_error: str = "raise") -> list[int]:
    """The indices of the records that have all columns and whose images are there. No image is decoded.

    records: mappings from columns to values; anything else cannot be used.
    columns: the columns that a record needs, images among them.
    on_error: "raise" at the first record that cannot be used, or "skip" such records and log each of them.

    Raises ValueError that names the row, the column and what it needs, and if no record can be used.
    """
    check_on_error(on_error)
    usable = []
    for row, record in enumerate(records):
        try:
            _require_columns(record, columns)
            _require_images(record["images"])
            usable.append(row)
        except ExampleError as error:
            if on_error == "raise":
                raise ValueError(f"records: row {row}: {error}") from error
            _LOG.warning("skipped row %d: %s", row, error)
    if not usable:
        raise ValueError("records: needs at least one that can be used, got none")
    return usable


def _require_columns(record: Any, columns: Sequence[str]) -> None:
    if not isinstance(record, Mapping):
        raise ExampleError(f"needs a mapping from columns to values, got {type(record).__name__}")
    found = [str(column) for column, value in record.items() if isinstance(value, (list, tuple)) or not is_null(value)]
    if not set(columns) <= set(found):
        raise ExampleError(f"needs the columns {', '.join(columns)}, got {', '.join(found) or 'none'}")


def _require_images(images: Any) -> None:
    for image in image_list(images):
        located = locate_image(image)
        if isinstance(located, str):
            require_file(located)
