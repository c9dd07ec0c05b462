"""The folder of a run over a data set: its shards, errors.jsonl, run.json and the dataset card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbdhs.data import write_whole
from mmbdhs.pairs.card import dataset_card
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.shards import Dropped, read_footer, shard_path, shard_paths
from mmbdhs.runs import check_same_run, read_record, write_record

_NAMES = ("model.name", "similarity.name")  # what has the same fingerprint may be elsewhere
_REDUCED = "reduced_max_branches"  # of run.json, once memory did not suffice


class RunFolder:
    """A folder that holds one run. Several processes may work in it, each on shards of its own.

    path: the folder.
    examples: number of examples of the run.
    shard_size: examples in a shard.
    """

    def __init__(self, path: Path, examples: int, shard_size: int) -> None:
        self.path, self.examples = path, examples
        self.shards = -(-examples // shard_size)

    def claim(self, identity: dict[str, Any]) -> None:
        """Record the identity of the run, or compare it with the recorded one. Raises FolderInUseError that names the
        differences."""
        if read_record(self.path):
            check_same_run(self.path, identity, {_REDUCED, *_NAMES})
        elif shard_paths(self.path):
            raise ValueError(
                f"out: {self.path} has shards but no run.json, so they cannot be continued. Choose another folder"
            )
        else:
            write_record(self.path, identity)

    @property
    def reduced_max_branches(self) -> int | None:
        """To how many branches the run went back when memory did not suffice; None if it did."""
        return read_record(self.path).get(_REDUCED)

    @reduced_max_branches.setter
    def reduced_max_branches(self, count: int) -> None:
        write_record(self.path, read_record(self.path) | {_REDUCED: count})

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """The numbers of the shards that one of several processes has still to sample."""
        return [one for one in range(rank, self.shards, world_size) if not shard_path(self.path, one).exists()]

    def _present(self) -> Iterator[tuple[list[Dropped], Figures]]:
        for number in range(self.shards):
            if (path := shard_path(self.path, number)).exists():
                yield read_footer(path)

    def figures(self) -> Figures:
        """The figures of all shards that are there."""
        return sum((figures for _, figures in self._present()), Figures())

    def append_errors(self, number: int) -> None:
        """Add the examples of a new shard that have no pair to errors.jsonl, in one write."""
        dropped, _ = read_footer(shard_path(self.path, number))
        with open(self.path / "errors.jsonl", "ab", buffering=0) as file:
            file.write(b"".join(map(_line, dropped)))

    def write_texts(self) -> Figures:
        """Write errors.jsonl and the dataset card from what the shards say. Returns the figures.

        Where shards of other processes have appeared meanwhile, both are written again, so that what is written last
        tells of all.
        """
        while True:
            before = self.missing()
            figures = self._write_texts()
            if self.missing() == before:
                return figures

    def _write_texts(self) -> Figures:
        present = list(self._present())
        write_whole(self.path / "errors.jsonl", (_line(one) for dropped, _ in present for one in dropped))
        figures = sum((figures for _, figures in present), Figures())
        card = dataset_card(read_record(self.path), figures, len(present), self.shards)
        write_whole(self.path / "README.md", [card.encode()])
        return figures


def _line(dropped: Dropped) -> bytes:
    values = {name: value for name, value in asdict(dropped).items() if value is not None}
    return json.dumps(values).encode() + b"\n"
