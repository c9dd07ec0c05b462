"""Data in all its forms as a table of raw rows. Opening one reads no more than it has to."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from mmbdhs.checks import kind_of
from mmbdhs.data.arrow_tables import DatasetTable, ParquetTable, load_saved
from mmbdhs.data.fingerprints import rows_fingerprint
from mmbdhs.data.jsonl import Row, parse_line
from mmbdhs.errors import ExampleError

Data: TypeAlias = Any
"""A path or a glob pattern, a datasets.Dataset or DatasetDict, or a list of mappings."""

FORMS = (
    "a .json, .jsonl or .parquet file, a folder or glob pattern of .parquet files, a folder of datasets.save_to_disk, "
    "a datasets.Dataset, or a list of mappings"
)
_SHARD = re.compile(r"(\w+?)-\d{5}(-of-\d{5})?(-[0-9a-f]+)?\.parquet")  # as datasets names the shards of a split
_ROWS_FOR_COLUMNS = 1000


class Table(Protocol):
    """Raw rows, in which no image is decoded.

    columns: the names of the columns.
    fingerprint: changes with the data.
    folder: where relative paths start; None for data in memory, whose paths are taken as they are.
    """

    columns: tuple[str, ...]

    @property
    def folder(self) -> Path | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """A row, counted from 0. Raises ExampleError for one that is no object."""

    def without_bytes(self, index: int) -> Row:
        """The row, with b"" in place of encoded images where these can be left unread."""

    def column(self, name: str) -> Iterator[Any]:
        """The values of one column, with None for rows without it. Others are not read, where the form allows it."""


class ListTable:
    """Rows in memory.

    rows: the rows.
    folder: where relative paths start; None: they are taken as they are.
    fingerprint: of the rows, if it is known.
    """

    def __init__(self, rows: Sequence[Any], folder: Path | None = None, fingerprint: str | None = None) -> None:
        self._rows, self.folder, self._fingerprint = rows, folder, fingerprint
        self.columns = _names(rows)

    @cached_property
    def fingerprint(self) -> str:
        return self._fingerprint or rows_fingerprint(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise ExampleError(f"needs a mapping from columns to values, got {type(row).__name__}")
        return dict(row)

    without_bytes = __getitem__

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) if isinstance(row, Mapping) else None for row in self._rows)


class JsonLinesTable:
    """A file with one JSON object a line, of which only the lines' beginnings are held in memory.

    Empty lines are left out. The columns are those of the first 1000 lines. The file is opened again for each row, so
    that threads and processes do not share a position in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self._begins, self._numbers = array("q"), array("q")
        digest, begin = blake2b(digest_size=16), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    self._begins.append(begin)
                    self._numbers.append(number)
                begin += len(line)
        self.fingerprint = digest.hexdigest()
        self.columns = _names(row for _, row in zip(range(_ROWS_FOR_COLUMNS), self._objects(), strict=False))

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> Row:
        with open(self.path, "rb") as file:
            file.seek(self._begins[index])
            return parse_line(self._numbers[index], file.readline())

    without_bytes = __getitem__

    def column(self, name: str) -> Iterator[Any]:
        return (None if row is None else row.get(name) for row in self._objects())

    def _objects(self) -> Iterator[Row | None]:
        """The rows in one pass through the file, with None for those that are no objects."""
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    try:
                        yield parse_line(0, line)
                    except ExampleError:
                        yield None


_FILES: dict[str, Callable[[Path], Table]] = {
    ".json": lambda path: _open_json(path),
    ".jsonl": JsonLinesTable,
    ".parquet": lambda path: ParquetTable([path], path.parent),
}


def open_table(data: Data, split: str = "train") -> Table:
    """Open data in any of its forms.

    data: a path, a datasets.Dataset, or a list of mappings.
    split: which split of a folder with several of them, or of a DatasetDict, is read.

    Raises ValueError, naming the file, for one that is missing, of another type or broken, TypeError for anything else
    than `FORMS`, and ImportError where a library for the form is missing.
    """
    if isinstance(data, (str, os.PathLike)):
        return _open_path(Path(data), split)
    if isinstance(data, (list, tuple)):
        _known_split(split, [""], "data")
        return ListTable(data)
    if _is(data, "IterableDataset", "IterableDatasetDict"):
        raise TypeError(
            f"data: needs rows that can be counted, got {type(data).__name__}. Load it without streaming=True, or save "
            "it with to_parquet and pass the file"
        )
    if _is(data, "DatasetDict"):
        return DatasetTable(data[_known_split(split, list(data), "the DatasetDict")])
    if not is_dataset(data):
        raise TypeError(f"data: needs {FORMS}, got {kind_of(data)}")
    _known_split(split, [str(data.split or "")], "the Dataset")
    return DatasetTable(data)


def is_dataset(data: Any) -> bool:
    """Whether this is a datasets.Dataset."""
    return _is(data, "Dataset")


def is_streamed(data: Any) -> bool:
    """Whether this is a datasets.IterableDataset."""
    return _is(data, "IterableDataset")


def _is(data: Any, *names: str) -> bool:
    """Whether data is of one of these classes of `datasets`, which is imported already if it is."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, tuple(getattr(library, name) for name in names))


def _open_path(path: Path, split: str) -> Table:
    if path.is_dir():
        return _open_folder(path, split)
    _known_split(split, [""], path)
    if path.is_file():
        if (suffix := path.suffix.lower()) not in _FILES:
            raise ValueError(f"{path}: needs a file that ends in {', '.join(_FILES)}, got {path.suffix or 'no suffix'}")
        return _FILES[suffix](path)
    shards = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if not shards:
        raise ValueError(
            f"data: needs a file or folder that is there, got {str(path)!r}. For a data set of the Hub, pass what "
            "datasets.load_dataset returns"
        )
    if other := [shard for shard in shards if shard.suffix != ".parquet"]:
        raise ValueError(f"{path}: needs a pattern of .parquet files alone, got {other[0]}")
    return ParquetTable(shards, Path(os.path.commonpath([shard.parent for shard in shards])))


def _open_folder(folder: Path, split: str) -> Table:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return DatasetTable(load_saved(folder / _known_split(split, splits, folder)), folder)
    if (folder / "state.json").is_file():
        saved = load_saved(folder)
        _known_split(split, [str(saved.split or "")], folder)
        return DatasetTable(saved, folder)
    shards = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not shards:
        raise ValueError(f"{folder}: needs .parquet files or what datasets.save_to_disk writes, got neither")
    names = [_SHARD.fullmatch(shard.name) for shard in shards]
    splits = list(dict.fromkeys(name[1] if name else "" for name in names))
    split = _known_split(split, splits, folder)
    if len(splits) > 1:
        shards = [shard for shard, name in zip(shards, names, strict=True) if name and name[1] == split]
    return ParquetTable(shards, folder)


def _known_split(split: str, splits: Sequence[str], where: Any) -> str:
    """The split of this name, or the only one if "train" is asked for, which is the default.

    splits: those that are there; "" for data without a name.

    Raises ValueError for a split that is not there.
    """
    if split not in splits and (split != "train" or len(splits) > 1):
        found = ", ".join(name or "data without splits" for name in splits)
        raise ValueError(f"{where}: needs a split {split}, got {found}. Pass one of them as split")
    return split if split in splits else splits[0]


def _open_json(path: Path) -> Table:
    """A list of objects, held in memory. Arrow would refuse the mixed types that published files have."""
    content = path.read_bytes()
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno} is not ({error.msg})"
        advice = ". If it holds one object a line, let its name end in .jsonl" * error.msg.startswith("Extra data")
        raise ValueError(f"{path}: needs valid JSON, {place}{advice}") from error
    except (ValueError, RecursionError) as error:  # no text, a number of too many digits, or too many nested lists
        raise ValueError(f"{path}: needs valid JSON, it cannot be read ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: needs a list of objects, got {type(rows).__name__}")
    return ListTable(rows, path.parent, blake2b(content, digest_size=16).hexdigest())


def _names(rows: Iterable[Any]) -> tuple[str, ...]:
    """The columns of the rows, in the order in which they are first found."""
    return tuple(dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row))
