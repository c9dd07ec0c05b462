"""Which examples an optimiser step takes, and reading them while the step before runs.

The examples of a step are divided among the processes one by one, so that a step does not depend on their number. A
process decodes no image of another's examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from mmbdhs.data import RecordStream, decoded_by, is_dataset, is_null, is_stream, key_address, undecoded, usable_rows
from mmbdhs.sampling import ReaderPool
from mmbdhs.training.pair_sources import TrainingExample

Record = Mapping[str, Any]
Position = tuple[int, int]
P = TypeVar("P")


@dataclass(frozen=True)
class UnreadExample:
    """A record in an epoch, before it is read.

    read_record: reads it and may decode its images. Raises ExampleError for a record that cannot be read.
    row: its number among the records.
    epoch: 0 in the first epoch.
    """

    read_record: Callable[[], Record]
    row: int
    epoch: int

    def read(self) -> TrainingExample:
        """The example, whose key is its row as a string where the record has none."""
        record = self.read_record()
        key: Any = record.get("key")
        return TrainingExample(record, str(self.row) if is_null(key) else key, self.epoch)


class Batch(NamedTuple):
    """The examples of one optimiser step.

    own: those of this process.
    size: their number over all processes.
    position: where the next batch begins: an epoch, and a number of records of this epoch.
    """

    own: list[UnreadExample]
    size: int
    position: Position


class Batches(Protocol):
    """The batches of a run.

    data: the records, as `data_fingerprint` takes them.
    steps_per_epoch: number of optimiser steps in an epoch; None where it is not known.
    """

    @property
    def data(self) -> Any: ...

    @property
    def steps_per_epoch(self) -> int | None: ...

    def begin(self, position: Position) -> Iterator[Batch]:
        """The batches from a position on, for ever. No image is decoded."""

    def records(self) -> Iterator[Record]:
        """The records in their own order, with images."""

    def all_have(self, column: str) -> bool:
        """Whether all records are known to have a value in a column. No image is decoded."""


@dataclass(frozen=True)
class Shares:
    """How many examples a step takes, and which of them belong to this process.

    batch_size: over all processes.
    process: the number of this process.
    processes: how many there are.
    """

    batch_size: int
    process: int = 0
    processes: int = 1

    def own(self, examples: Sequence[P]) -> Sequence[P]:
        """Those of this process."""
        return examples[self.process :: self.processes]

    def longest(self, size: int) -> int:
        """The number of examples of the process that has most of `size` examples."""
        return math.ceil(size / self.processes)


def make_batches(records: Any, columns: Sequence[str], on_error: str, seed: int, shares: Shares) -> Batches:
    """The batches of records.

    records: a sequence, which is shuffled in every epoch, or a stream, which is taken in its own order.
    columns: the columns that a record needs.
    on_error: as in `usable_rows`.
    seed: seed of the order.

    Raises ValueError for records that cannot be used, and TypeError for a stream that runs only once.
    """
    if is_stream(records):
        return StreamBatches(RecordStream(records, columns, on_error), shares)
    return ShuffledBatches(records, usable_rows(records, columns, on_error), seed, shares)


@dataclass(frozen=True)
class ShuffledBatches:
    """Batches of records with numbers, in another order in every epoch.

    data: the records.
    rows: the numbers of those that are trained on.
    seed: seed of the order.
    """

    data: Any
    rows: list[int]
    seed: int
    shares: Shares

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.shares.batch_size)

    def begin(self, position: Position) -> Iterator[Batch]:
        first, taken = position
        for epoch in count(first):
            order = _epoch_order(len(self.rows), self.seed, epoch)
            for begin in range(taken, len(order), self.shares.batch_size):
                numbers = order[begin : begin + self.shares.batch_size]
                own = [unread_example(self.data, self.rows[number], epoch) for number in self.shares.own(numbers)]
                yield Batch(own, len(numbers), (epoch, begin + len(numbers)))
            taken = 0

    def records(self) -> Iterator[Record]:
        return (self.data[row] for row in self.rows)

    def all_have(self, column: str) -> bool:
        return all(record.get(column) is not None for record in undecoded(self.data, self.rows))


@dataclass(frozen=True)
class StreamBatches:
    """Batches of a stream, in its own order."""

    data: RecordStream
    shares: Shares
    steps_per_epoch = None

    def begin(self, position: Position) -> Iterator[Batch]:
        first, taken = position
        for epoch in count(first):
            rows = self.data.usable(epoch, taken)
            while numbered := list(islice(rows, self.shares.batch_size)):
                own = [self._unread(*one, epoch) for one in self.shares.own(numbered)]
                yield Batch(own, len(numbered), (epoch, numbered[-1][0] + 1))
            taken = 0

    def records(self) -> Iterator[Record]:
        return (self.data.decoded(record) for _, record in self.data.usable(0, 0))

    def all_have(self, column: str) -> bool:
        return False

    def _unread(self, row: int, record: Any, epoch: int) -> UnreadExample:
        return UnreadExample(partial(self.data.decoded, record), row, epoch)


def held_out_examples(records: Any, columns: Sequence[str], on_error: str) -> list[UnreadExample]:
    """The examples of held-out records that can be used. Raises ValueError as `usable_rows` does."""
    try:
        rows = usable_rows(records, columns, on_error)
    except ValueError as error:
        raise ValueError(f"eval_{error}") from error
    return [unread_example(records, row) for row in rows]


def unread_example(records: Any, row: int, epoch: int = 0) -> UnreadExample:
    """An example of a sequence of records by its row. The images of a datasets.Dataset are decoded as it does it."""
    read = partial(decoded_by, records.__getitem__) if is_dataset(records) else records.__getitem__
    return UnreadExample(partial(read, row), row, epoch)


class ReadAhead(Generic[P]):
    """Prepares the examples of the next batch in threads while the caller works on one.

    batches: the batches, in the order in which they are needed.
    prepare: makes of an example what the caller needs of it, in any thread.
    pool: the threads. Without any, each example is prepared when it is asked for.
    """

    def __init__(self, batches: Iterable[Batch], prepare: Callable[[UnreadExample], P], pool: ReaderPool) -> None:
        self._batches, self._prepare, self._pool = iter(batches), prepare, pool
        self._next = pool.submit(self._begin) if pool.num_workers else None

    def next_batch(self) -> tuple[Batch, list[Callable[[], P]]]:
        """The next batch, and functions that return its prepared examples, each called once. Raises what the batches
        raise; an error of `prepare` is raised by the function of its example."""
        if self._next is None:
            return self._begin()
        found = self._next.result()
        self._next = self._pool.submit(self._begin)
        return found

    def others(self, examples: Sequence[UnreadExample]) -> Iterator[P]:
        """Prepare examples that belong to no batch, in their order."""
        return self._pool.map(self._prepare, examples)

    def _begin(self) -> tuple[Batch, list[Callable[[], P]]]:
        """The next batch, with its examples given to the threads; an empty one after the last."""
        batch = next(self._batches, Batch([], 0, (0, 0)))
        calls: list[Callable[[], P]] = [partial(self._prepare, example) for example in batch.own]
        return batch, [self._pool.submit(call).result for call in calls] if self._pool.num_workers else calls


@lru_cache(maxsize=1)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(key_address(f"order {seed} {epoch}"))
    return torch.randperm(count, generator=generator).tolist()
