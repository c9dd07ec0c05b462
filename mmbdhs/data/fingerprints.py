"""Fingerprints of data: short texts that change with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

_PIECE = 2**20


def data_fingerprint(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The number of records and their fingerprint, which `Records`, `RecordStream` and datasets.Dataset bring along."""
    known = getattr(records, "fingerprint", None) or getattr(records, "_fingerprint", None)
    count = len(records) if hasattr(records, "__len__") else None
    return {"records": count, "fingerprint": known if isinstance(known, str) else rows_fingerprint(records)}


def rows_fingerprint(rows: Iterable[Any]) -> str:
    """The fingerprint of rows in memory: of their text and numbers, and of the size and mode of PIL images."""
    digest = blake2b(digest_size=16)
    for row in rows:
        items = row.items() if isinstance(row, Mapping) else [("", row)]
        found = [(name, _content(value)) for name, value in sorted(items, key=lambda item: str(item[0]))]
        digest.update(repr(found).encode("utf-8", "replace"))
    return digest.hexdigest()


def text_fingerprint(text: str) -> str:
    """The fingerprint of a text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def parquet_fingerprint(files: Sequence[Path], footer_sizes: Sequence[int]) -> str:
    """The fingerprint of Parquet files: of their names, sizes, first MiB, and footers with the MiB before.

    footer_sizes: in bytes. A footer has the statistics of the columns, which change with almost any content.
    """
    digest = blake2b(digest_size=16)
    for path, footer_size in zip(files, footer_sizes, strict=True):
        size = path.stat().st_size
        digest.update(repr((path.name, size)).encode())
        with open(path, "rb") as file:
            digest.update(file.read(_PIECE))
            file.seek(max(size - footer_size - _PIECE, 0))
            digest.update(file.read())
    return digest.hexdigest()


def _content(value: Any) -> Any:
    """A value of a record for hashing: images in memory by their size, because there may be many."""
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return blake2b(value, digest_size=8).hexdigest()
    return (value.size, value.mode) if hasattr(value, "getpixel") else str(value)
