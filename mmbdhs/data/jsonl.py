"""JSON Lines: files with one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import Any, TypeAlias

from mmbdhs.checks import check_on_error
from mmbdhs.data.files import write_whole
from mmbdhs.errors import ExampleError

_LOG = logging.getLogger("mmbdhs")

Row: TypeAlias = dict[str, Any]


def read_jsonl(path: str | os.PathLike[str], on_error: str = "raise") -> list[Row]:
    """Read the objects of a JSON Lines file. Empty lines are left out.

    path: the file.
    on_error: "raise" at the first line that is not a JSON object, or "skip" such lines and log each.

    Raises ValueError that names the file and the line.
    """
    check_on_error(on_error)
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append(parse_line(number, line))
            except ExampleError as error:
                if on_error == "raise":
                    raise ValueError(f"{os.fspath(path)}: {error}") from error
                _LOG.warning("skipped a line of %s: %s", os.fspath(path), error)
    return rows


def parse_line(number: int, line: bytes) -> Row:
    """The object in a line. Raises ExampleError that names the line for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or too many lists in lists
        raise ExampleError(f"needs one JSON object a line, line {number} is none ({error})") from error
    if not isinstance(row, dict):
        raise ExampleError(f"needs one JSON object a line, got {type(row).__name__} in line {number}")
    return row


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Row]) -> int:
    """Write one JSON object a line, in UTF-8; returns how many.

    The file appears complete or not at all.
    """
    return write_whole(path, map(_line, records))


def _line(record: Row) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character (a lone surrogate), which JSON can write as an escape only
        text = json.dumps(record).encode()
    return text + b"\n"
