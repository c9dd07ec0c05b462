"""Records that come one after another, without a number of them that is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from mmbdhs.checks import check_on_error
from mmbdhs.data.fingerprints import rows_fingerprint
from mmbdhs.data.jsonl import Row
from mmbdhs.data.layouts import has_no_image
from mmbdhs.data.readers import is_usable
from mmbdhs.data.tables import is_streamed
from mmbdhs.errors import ExampleError, TextOnlyError

_LOG = logging.getLogger("mmbdhs")


class RecordStream:
    """Records in the order of an iterable, which is run through once for every epoch.

    records: a datasets.IterableDataset, or another iterable of mappings without a length, in TRL's vision preference
        layout. It is told the epoch if it has a method set_epoch, as a shuffled IterableDataset needs it.
    columns: the columns that a record needs, images among them.
    on_error: as in `usable_rows`.

    The images of a datasets.IterableDataset stay encoded until `decoded` is called, if its features are known and the
    library is able to (`IterableDataset.decode`).

    Raises TypeError for an iterator, which runs once.
    """

    def __init__(self, records: Iterable[Any], columns: Sequence[str], on_error: str = "raise") -> None:
        check_on_error(on_error)
        if isinstance(records, Iterator):
            raise TypeError(f"records: needs an iterable that can begin again, got {type(records).__name__}")
        self._columns, self._on_error = columns, on_error
        given: Any = records
        can_wait = is_streamed(given) and given.features is not None and hasattr(given, "decode")
        self._records = given.decode(False) if can_wait else given
        self._decode: Callable[[Row], Row] | None = given.features.decode_example if can_wait else None

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the first record that can be used. More of the stream is not read."""
        return rows_fingerprint(record for _, record in islice(self.usable(0, 0), 1))

    def usable(self, epoch: int, begin: int) -> Iterator[tuple[int, Row]]:
        """The number and the record of each row that can be used, from row `begin` of an epoch on. No image is decoded,
        as far as the iterable allows it.

        Raises ValueError for a row that cannot be used, unless such rows are skipped, and at the end of an epoch that
        had none from its first row on.
        """
        found, seen_text_only = begin > 0, False
        for row, record in enumerate(self._from(epoch, begin), begin):
            try:
                if is_usable(row, partial(self._checkable, record), self._columns, self._on_error):
                    found = True
                    yield row, record
            except TextOnlyError:
                if not seen_text_only:
                    _LOG.warning("leaving out text-only rows, the first is row %d of epoch %d", row, epoch)
                seen_text_only = True
        if not found:
            raise ValueError("records: needs at least one that can be used, got none")

    def decoded(self, record: Row) -> Row:
        """The record with its images decoded as its dataset does it, in any thread. Raises ExampleError for images that
        cannot be decoded."""
        return record if self._decode is None else decoded_by(self._decode, record)

    def _checkable(self, record: Any) -> Any:
        """The record, with b"" for images that only its dataset may be able to open, such as files on the Hub."""
        waits = self._decode is not None and not has_no_image(record.get("images"))
        return {**record, "images": b""} if waits else record

    def _from(self, epoch: int, begin: int) -> Iterator[Any]:
        if hasattr(self._records, "set_epoch"):
            self._records.set_epoch(epoch)
        # IterableDataset.skip changes the order in which shards are shuffled, and reads what it skips as well.
        return islice(self._records, begin, None)


def is_stream(records: Any) -> bool:
    """Whether records can only be run through: they can be iterated and have no length."""
    return isinstance(records, Iterable) and not hasattr(records, "__len__") and not isinstance(records, Mapping)


def decoded_by(read: Callable[[Any], Any], argument: Any) -> Any:
    """A record of the library `datasets` with its images decoded by `read`, which raises almost anything for broken
    ones. Raises ExampleError instead."""
    try:
        return read(argument)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ExampleError(
            f"images: needs images that can be decoded, got a row whose reading fails ({reason})"
        ) from error
