"""From data in any form and layout to records in TRL's vision preference layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmbdhs.checks import check_on_error, one_of
from mmbdhs.data.conversations import answer_count
from mmbdhs.data.fingerprints import text_fingerprint
from mmbdhs.data.images import image_list, locate_image, require_file
from mmbdhs.data.jsonl import Row
from mmbdhs.data.keys import is_null
from mmbdhs.data.layouts import Layout, find_layout, given_columns, has_no_image, row_images
from mmbdhs.data.tables import Data, Table, is_dataset, open_table
from mmbdhs.errors import ExampleError, TextOnlyError

_LOG = logging.getLogger("mmbdhs")

TURNS = ("last", "first", "every")
_IDS = ("id", "idx", "question_id")


class Records(Sequence[Row]):
    """Data as a sequence of records in TRL's vision preference layout, each read when it is asked for.

    `records[i]` raises ExampleError for a row that cannot be used, with the row's number in the source as its index,
    and TextOnlyError for a row without an image. Records can be pickled: another process opens the data again.

    source: the data, a path made absolute.
    layout: the name of the data's layout.
    turns, image_folder, split: as `open_records` takes them, a path made absolute.
    columns: the columns that records may have, as far as they are known beforehand.
    fingerprint: changes with the data, its layout and `turns`.
    """

    def __init__(self, data: Data, turns: str, image_folder: Path | None, split: str = "train") -> None:
        one_of("turns", turns, TURNS)
        self.source = Path(data).absolute() if isinstance(data, (str, os.PathLike)) else data
        self.turns, self.image_folder, self.split = turns, image_folder, split
        self._table = open_table(self.source, split)
        self._folder = image_folder or self._table.folder
        if not len(self._table):
            raise ValueError("data: needs at least one row, got none")
        self._layout = find_layout(self._table.columns)
        self._ends = _ends_of_rows(self._table, self._layout) if turns == "every" else None
        self.layout, self.columns = self._layout.name, _record_columns(self._table.columns, self._layout)
        self.fingerprint = text_fingerprint(f"{self._table.fingerprint} {self.layout} {turns}")

    def __len__(self) -> int:
        return len(self._table) if self._ends is None else int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        """The record with this number, or the list of those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._record(index, self._table.__getitem__)

    def without_bytes(self, index: int) -> Row:
        """The record, with b"" in place of encoded images where these can be left unread. For checks of columns."""
        return self._record(index, self._table.without_bytes)

    def row(self, index: int) -> int:
        """The number, from 0, of the row in the source that a record is made of."""
        return self._place(index)[0]

    def source_id(self, index: int) -> str | None:
        """The source's id of a record, also of one that cannot be used; None if there is none."""
        try:
            return _source_id(self._table.without_bytes(self.row(index)))
        except ExampleError:
            return None

    def __reduce__(self) -> tuple[Callable[..., Records], tuple[Any, ...]]:
        return _reopened, (self.source, self.turns, self.image_folder, self.split, self.fingerprint)

    def _place(self, index: int) -> tuple[int, int]:
        """The row of a record, and the number of the assistant's turn that is chosen."""
        number = range(len(self))[index]
        if self._ends is None:
            return number, -1 if self.turns == "last" else 0
        row = int(np.searchsorted(self._ends, number, side="right"))
        return row, number - (int(self._ends[row - 1]) if row else 0)

    def _record(self, index: int, read: Callable[[int], Row]) -> Row:
        number, turn = self._place(index)
        try:
            return self._made(read(number), turn)
        except ExampleError as error:
            place = f"turn {turn}: " if self._ends is not None else ""
            raise type(error)(place + error.reason, number) from error

    def _made(self, row: Row, turn: int) -> Row:
        layout = self._layout
        images = [_placed(image, self._folder) for image in row_images(row, layout.images)]
        kept = {name: value for name, value in given_columns(row).items() if name not in layout.images}
        names = {"images": images, **kept} if layout.keeps_columns else {"images": images}
        record = names | layout.read(row, images, turn)
        if "chosen" in self.columns and "chosen" not in record:
            raise ExampleError("chosen: needs a response, got none")
        record.pop("id", None)
        key = kept.get("key")
        if self._ends is not None and key is not None:
            key = f"{key}/{turn}"  # each turn has random draws of its own
        extra = {"key": key, "id": _source_id(row)}
        return record | {name: value for name, value in extra.items() if value is not None}


def open_records(
    data: Data,
    *,
    turns: str = "last",
    image_folder: str | os.PathLike[str] | None = None,
    split: str = "train",
) -> Records:
    """Open preference data, or data with chosen responses alone, in any layout of docs/data.md.

    Opening reads a JSON or JSONL file once, and the footers of Parquet files. A record is read when it is asked for.

    data: a .json, .jsonl or .parquet file; a folder or glob pattern of Parquet files; a folder of
        `datasets.save_to_disk`; a `datasets.Dataset` or `DatasetDict`; a list of mappings; or `Records`.
    turns: which turn from "gpt" is the chosen response where a row holds a conversation (LLaVA-Instruct, POVID):
        "last", "first", or "every", which makes a record of each turn. Earlier turns stay in the prompt. The default
        uses the whole conversation and gives one record a row; "first" gives the shortest prompts.
    image_folder: where relative paths of images start. None: the folder of the file, or the folder given as data; paths
        of data in memory stay as they are, and `Records` keep theirs.
    split: which split is read where there are several.

    Raises ValueError for data that is missing or broken, without rows, or in no known layout, TypeError for data in no
    known form, and ImportError without the libraries that the form needs.
    """
    folder = None if image_folder is None else Path(image_folder).absolute()
    if isinstance(data, Records):
        folder = folder or data.image_folder
        if (data.turns, data.image_folder, data.split) == (turns, folder, split):
            return data
        data = data.source
    records = Records(data, turns, folder, split)
    _LOG.info("data: %d records in the layout %s", len(records), records.layout)
    return records


def read_records(data: Data, on_error: str = "raise") -> list[Row]:
    """The records of data that can be used, as a list in memory. `open_records` reads them one at a time.

    data: as in `open_records`.
    on_error: as in `usable_rows`.

    Raises what `open_records` and `usable_rows` raise.
    """
    records = open_records(data)
    return [records[index] for index in usable_rows(records, (), on_error)]


def usable_rows(records: Iterable[Any], columns: Sequence[str], on_error: str = "raise") -> list[int]:
    """The indices of the records that have all columns and whose images are there. No image is decoded.

    Records without an image are left out, whatever `on_error` says, and counted in one line of the log.

    records: `Records`, or mappings from columns to values; anything else cannot be used.
    columns: the columns that a record needs, images among them.
    on_error: "raise" at the first record that cannot be used, or "skip" such records and log each of them.

    Raises ValueError that names the row, the column and what it needs, and if no record can be used.
    """
    check_on_error(on_error)
    usable, text_only = [], []
    for index, read in enumerate(_reads(records)):
        row = records.row(index) if isinstance(records, Records) else index
        try:
            if is_usable(row, read, columns, on_error):
                usable.append(index)
        except TextOnlyError:
            text_only.append(row)
    if text_only:
        _LOG.warning("left out %d text-only row(s), the first is row %d", len(set(text_only)), text_only[0])
    if not usable:
        raise ValueError("records: needs at least one that can be used, got none")
    return usable


def is_usable(row: int, read: Callable[[], Any], columns: Sequence[str], on_error: str) -> bool:
    """Whether the record that `read` returns can be used, see `usable_rows`. Raises TextOnlyError for a record without
    an image.

    row: its number in the source, for messages.
    """
    try:
        _check_record(read(), columns)
    except TextOnlyError:
        raise
    except ExampleError as error:
        if on_error == "raise":
            raise ValueError(f"records: row {row}: {error.reason}") from error
        _LOG.warning("skipped row %d: %s", row, error.reason)
        return False
    return True


def undecoded(records: Iterable[Any], rows: Collection[int]) -> Iterator[Any]:
    """The records of these rows in ascending order, read as far as `usable_rows` reads them. No image is decoded."""
    wanted = set(rows)
    return (read() for index, read in enumerate(_reads(records)) if index in wanted)


def _reads(records: Iterable[Any]) -> Iterator[Callable[[], Any]]:
    """For each record a function that reads it as far as checks need it."""
    if isinstance(records, Records):
        return (partial(records.without_bytes, index) for index in range(len(records)))
    if is_dataset(records):  # by itself it would decode every image
        table = open_table(records)
        return (partial(table.without_bytes, index) for index in range(len(table)))
    return (partial(lambda record: record, record) for record in records)


def _check_record(record: Any, columns: Sequence[str]) -> None:
    if not isinstance(record, Mapping):
        raise ExampleError(f"needs a mapping from columns to values, got {type(record).__name__}")
    if "images" in record and has_no_image(record["images"]):
        raise TextOnlyError("images: needs an image, got none")
    found = given_columns(record)
    if not set(columns) <= found.keys():
        raise ExampleError(f"needs the columns {', '.join(columns)}, got {', '.join(map(str, found)) or 'none'}")
    for image in image_list(record["images"]) if "images" in record else ():
        located = locate_image(image)
        if isinstance(located, str):
            require_file(located)


def _source_id(row: Row) -> str | None:
    """The source's id of a row; published files mix numbers and texts."""
    return next((str(row[name]) for name in _IDS if not is_null(row.get(name))), None)


def _placed(image: Any, folder: Path | None) -> Any:
    """The image, with the folder in front of a relative path. Raises ExampleError for what is no image."""
    located = locate_image(image)
    if folder is None or not isinstance(located, str):
        return image
    path = os.fspath(folder / located)
    return {**image, "path": path} if isinstance(image, Mapping) else path


def _ends_of_rows(table: Table, layout: Layout) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Where the records of each row end, if rows may have several. Only the conversations are read."""
    if layout.turns is None:
        return None
    return np.cumsum(np.fromiter(map(answer_count, table.column(layout.turns)), dtype=np.int64), dtype=np.int64)


def _record_columns(columns: Sequence[str], layout: Layout) -> tuple[str, ...]:
    kept = [name for name in columns if name not in layout.images] if layout.keeps_columns else []
    own = [] if layout.keeps_columns else layout.responses
    extra = ["key"] * ("key" in columns) + ["id"] * (not set(_IDS).isdisjoint(columns))
    return tuple(dict.fromkeys(["images", "prompt", *own, *kept, *extra]))


def _reopened(data: Data, turns: str, image_folder: Path | None, split: str, fingerprint: str) -> Records:
    records = Records(data, turns, image_folder, split)
    if records.fingerprint != fingerprint:
        raise ValueError(f"data: needs the content that it had when it was opened first, {data} has changed")
    return records
