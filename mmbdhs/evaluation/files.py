"""The files in which benchmarks are published."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def column(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *names: str) -> list[Any]:
    """The value of each row in the first of the columns `names` that it has. Raises ValueError if a row has none."""
    found = []
    for number, row in enumerate(rows, start=1):
        name = next((name for name in names if name in row), None)
        if name is None:
            raise ValueError(f"{path}: needs a column {' or '.join(names)}, row {number} has {sorted(row)}")
        found.append(row[name])
    return found


def read_sections(path: str | os.PathLike[str], *names: str) -> list[list[dict[str, Any]]]:
    """The lists `names` of a JSON file with one object. Raises ValueError if one is missing."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: needs an object with {', '.join(names)}, got {found}")
    return [content[name] for name in names]
