"""Tables that Arrow reads: Parquet files and datasets of the library `datasets`. No image is decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmbdhs.data.fingerprints import parquet_fingerprint
from mmbdhs.data.jsonl import Row

_BATCH = 1000


class ParquetTable:
    """The rows of Parquet files, one file after the other.

    Opening reads the footers. A row is read with the group of rows that its file keeps it in, and the last group is
    kept, so rows are best read in order.

    files: the files.
    folder: where relative paths start.

    Raises ValueError for a file that is broken, and ImportError without pyarrow.
    """

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        self._parquet = _library("pyarrow.parquet")
        self._files, self.folder = list(files), folder
        self._footers = [self._open(path).metadata for path in files]
        self._names = [tuple(footer.schema.to_arrow_schema().names) for footer in self._footers]
        self.columns = tuple(dict.fromkeys(name for names in self._names for name in names))
        self._groups = [(file, group) for file, one in enumerate(self._footers) for group in range(one.num_row_groups)]
        sizes = [self._footers[file].row_group(group).num_rows for file, group in self._groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.fingerprint = parquet_fingerprint(self._files, [one.serialized_size for one in self._footers])
        self._kept: tuple[Any, Any, set[str]] = (None, None, set())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:
        return _row(self._one_row(index, skip_bytes=False)[0])

    def without_bytes(self, index: int) -> Row:
        found, unread = self._one_row(index, skip_bytes=True)
        row = _row(found)
        return row | {name: _with_stand_ins(row[name]) for name in unread}

    def column(self, name: str) -> Iterator[Any]:
        for file, group in self._groups:
            if name in self._names[file]:
                yield from map(_python, self._read(file, group, [name])[name])
            else:
                yield from [None] * self._footers[file].row_group(group).num_rows

    def _one_row(self, index: int, *, skip_bytes: bool) -> tuple[Any, set[str]]:
        """A table of one row, and the columns in which the images' bytes are left out."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        key, rows, unread = self._kept
        if key != (number, skip_bytes):
            file, group = self._groups[number]
            leaves, unread = self._leaves(file, group) if skip_bytes else (None, set())
            rows = self._read(file, group, leaves)
            self._kept = (number, skip_bytes), rows, unread
        return rows.slice(index - int(self._ends[number]) + rows.num_rows, 1), unread

    def _leaves(self, file: int, group: int) -> tuple[list[str], set[str]]:
        """The leaves of a group without those of images' bytes that all rows are known to have, and the columns of
        these. Which rows have them is not known otherwise."""
        footer = self._footers[file].row_group(group)
        chunks = {one.path_in_schema: one for one in map(footer.column, range(footer.num_columns))}
        stored = {path for path, one in chunks.items() if _has_all_bytes(path, one, chunks)}
        return [path for path in chunks if path not in stored], {path.partition(".")[0] for path in stored}

    def _read(self, file: int, group: int, leaves: list[str] | None) -> Any:
        path = self._files[file]
        with _named(path):
            return self._open(path, self._footers[file]).read_row_group(group, columns=leaves)

    def _open(self, path: Path, footer: Any = None) -> Any:
        with _named(path):
            return self._parquet.ParquetFile(path, metadata=footer)


class DatasetTable:
    """The rows of a datasets.Dataset, whatever format or transform it has.

    dataset: the dataset.
    folder: where relative paths start; None: they are taken as they are.
    """

    def __init__(self, dataset: Any, folder: Path | None = None) -> None:
        self._dataset, self.folder = dataset.with_format("arrow"), folder
        self.columns: tuple[str, ...] = tuple(dataset.column_names)
        self.fingerprint: str = dataset._fingerprint

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return _row(self._dataset[index])

    def without_bytes(self, index: int) -> Row:
        return _row(self._dataset[index], skip_bytes=True)

    def column(self, name: str) -> Iterator[Any]:
        if name not in self.columns:
            yield from [None] * len(self)
            return
        for batch in self._dataset.select_columns([name]).iter(_BATCH):
            yield from map(_python, batch[name])


def load_saved(folder: Path) -> Any:
    """The dataset in a folder of datasets.save_to_disk. Raises ValueError for a broken one."""
    library = _library("datasets")
    with _named(folder):
        return library.load_from_disk(str(folder))


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"data: needs {package}, in the extra 'data': pip install 'mmbdhs[data]'") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in errors of Arrow, which are OSError or ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: needs a file that is whole, got one that is cut short or broken ({reason}). Write or download it "
            "again"
        ) from error


def _has_all_bytes(path: str, chunk: Any, chunks: dict[str, Any]) -> bool:
    """Whether this leaf holds the bytes of images {bytes, path}, and no row of the group lacks them."""
    prefix, _, leaf = path.rpartition(".")
    known = chunk.statistics is not None and chunk.statistics.has_null_count
    return leaf == "bytes" and f"{prefix}.path" in chunks and known and chunk.statistics.null_count == 0


def _with_stand_ins(value: Any) -> Any:
    """The images of a row, with b"" for the bytes that were not read."""
    return [_with_stand_ins(item) for item in value] if isinstance(value, list) else value | {"bytes": b""}


def _row(table: Any, *, skip_bytes: bool = False) -> Row:
    """The first row of an Arrow table."""
    return {
        name: _python(column[0], skip_bytes=skip_bytes)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _python(scalar: Any, *, skip_bytes: bool = False) -> Any:
    """The value of an Arrow scalar. JSON, as which `datasets` stores values of mixed types, is read.

    skip_bytes: whether b"" takes the place of all bytes, so that Arrow does not read them.
    """
    kind = str(scalar.type)
    if not scalar.is_valid or not ("arrow.json" in kind or (skip_bytes and "binary" in kind)):
        return scalar.as_py()
    if kind.startswith("struct"):
        return {name: _python(item, skip_bytes=skip_bytes) for name, item in scalar.items()}
    if "list" in kind.partition("<")[0]:
        return [_python(item, skip_bytes=skip_bytes) for item in scalar]
    return json.loads(scalar.as_py()) if "arrow.json" in kind else b""
