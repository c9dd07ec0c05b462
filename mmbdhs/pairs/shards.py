"""Shards of pairs: Parquet files in the layout of TRL's vision preference data sets, each complete or not there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmbdhs.data import (
    ChatPrompt,
    as_chat,
    as_response,
    key_address,
    preference_record,
    remove_unfinished,
    stored_image,
    whole_file,
)
from mmbdhs.errors import ExampleError
from mmbdhs.pairs.figures import Figures
from mmbdhs.sampling import BDHSSample

OPTIONAL_COLUMNS = (
    "tools",
    "chat_template_kwargs",
)  # TRL refuses nulls in these, so they may be missing as a whole
_FOOTER = b"mmbdhs"
_ROWS_TOGETHER = 64  # in memory with their images, and in a row group


@dataclass(frozen=True)
class Dropped:
    """An example without a pair.

    example: its number in the run.
    row: its row in the source.
    id: the source's own name for it.
    kind: "failed" for what cannot be used, "text_only" for a row without an image, or the filter that left it out:
        "identical", "empty", "garbled" or "length_ratio".
    reason: what was wrong.
    rejected: the response that a filter left out.
    """

    example: int
    row: int
    id: str | None
    kind: str
    reason: str
    rejected: str | None = None


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / "data" / f"train-{number:05d}.parquet"


def shard_paths(folder: Path) -> list[Path]:
    """The files of all shards that are there, in order."""
    return sorted((folder / "data").glob("train-*.parquet"))


def require_pyarrow() -> None:
    """Raise ImportError that names the extra if the libraries for Parquet are missing."""
    try:
        import datasets  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError("Parquet needs the extra 'data': pip install 'mmbdhs[data]'") from error


def shard_schema(columns: Collection[str]) -> Any:
    """The pyarrow schema of the shards, with what `datasets` needs to show images and lists as what they are.

    columns: of the records, of which the optional ones are kept.
    """
    from datasets import Features, Image, Value

    text, flag, whole = Value("string"), Value("bool"), Value("int32")
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    sentence = {"reference": text, "swapped": flag, "cut": whole, "kept": text, "completion": text}
    features: dict[str, Any] = {"images": [Image()], "prompt": messages, "chosen": messages, "rejected": messages}
    features |= {name: text for name in OPTIONAL_COLUMNS if name in columns}
    features |= {"key": text, "address": Value("int64"), "row": Value("int64"), "id": text, "seed": Value("uint64")}
    features |= {"similarity": Value("float64"), "iterations": whole, "guided": flag}
    features |= {"image_tokens": whole, "visible_image_tokens": [whole], "image_grids": [[whole]]}
    features |= {"sentences": [sentence | {"prefix_ids": [whole], "completion_ids": [whole]}], "response_ids": [whole]}
    features |= {"noise_steps": whole, "noise_range": text, "pair_faults": [text]}
    return Features(features).arrow_schema


def storable_prompt(record: Mapping[str, Any]) -> ChatPrompt:
    """The prompt of a record. Raises ExampleError for messages with more than a role, text and images, which the
    columns of a shard cannot hold."""
    chat = as_chat(ChatPrompt.of_record(record), len(record["images"]), "prompt")
    messages: Any = chat.messages
    for message in messages:
        if extra := message.keys() - {"role", "content"}:
            raise ExampleError(f"prompt: needs messages of role and content alone, got {', '.join(sorted(extra))} too")
    return chat


def shard_row(record: Mapping[str, Any], row: int, sample: BDHSSample, seed: int, embed: bool) -> dict[str, Any]:
    """A pair as a row of a shard.

    record: the example, in TRL's layout.
    row: its row in the source.
    embed: whether to store the encoded images.
    """
    images = [stored_image(image, embed=embed) for image in record["images"]]
    chat, chosen = storable_prompt(record), as_response(record["chosen"], "chosen")
    found = preference_record(images, chat, str(chosen), sample, seed)
    found |= {name: json.dumps(value) for name in OPTIONAL_COLUMNS if (value := getattr(chat, name)) is not None}
    return found | {
        "prompt": [message | {"content": _parts(message["content"])} for message in found["prompt"]],
        "key": str(sample.key),
        "address": key_address(sample.key),
        "row": row,
        "id": record.get("id"),
        "response_ids": sample.response_ids,
    }


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def write_shard(
    path: Path, schema: Any, rows: Iterable[dict[str, Any]], dropped: Iterable[Dropped], figures: Figures
) -> None:
    """Write a shard. The examples without a pair and the figures are part of the file, so that it alone says what
    became of each example.

    rows: taken as they are written, so that few images are in memory at a time.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    footer = json.dumps({"dropped": [asdict(one) for one in dropped], "figures": figures.rows()})
    schema = schema.with_metadata((schema.metadata or {}) | {_FOOTER: footer})
    remove_unfinished(path)
    rows = iter(rows)
    with whole_file(path) as file, ParquetWriter(file, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS_TOGETHER)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))


def read_footer(path: Path) -> tuple[list[Dropped], Figures]:
    """The examples of a shard that have no pair, and its figures. Raises ValueError for a file that is no shard."""
    from pyarrow.parquet import read_schema

    try:
        footer = json.loads((read_schema(path).metadata or {})[_FOOTER])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: needs a shard of pairs, got another file. Delete it to have it sampled again"
        ) from error
    return [Dropped(**one) for one in footer["dropped"]], Figures(footer["figures"])


def read_columns(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard with some of its columns, few at a time. Images stay encoded."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_TOGETHER, columns=list(columns)):
            yield from batch.to_pylist()
