"""JSON Lines: files with one JSON object a line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, without empty lines. Raises ValueError that names a line with anything else."""
    with open(path, encoding="utf-8") as file:
        return [_object(path, number, line) for number, line in enumerate(file, start=1) if line.strip()]


def _object(path: str | os.PathLike[str], number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: needs one JSON object a line, line {number} is none ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{os.fspath(path)}: needs one JSON object a line, got {type(row).__name__} in line {number}")
    return row


def write_jsonl(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, in UTF-8; returns how many.

    The file appears complete or not at all: it is written under a temporary name in the same folder, then renamed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            count = sum(1 for record in records if file.write(json.dumps(record, ensure_ascii=False) + "\n"))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return count
