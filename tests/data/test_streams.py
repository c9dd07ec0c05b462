"""Streams: records without a length, in their own order, undecoded until they are needed."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmbdhs.data import RecordStream, data_fingerprint, is_stream
from mmbdhs.errors import ExampleError

datasets = pytest.importorskip("datasets")

COLUMNS = ("images", "prompt", "chosen")


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"images": [{"bytes": png(n), "path": None}], "prompt": "What?", "chosen": f"Number {n}."} for n in range(count)
    ]


def streamed(count: int, shards: int = 3) -> Any:
    data = datasets.Dataset.from_list(rows(count)).cast_column("images", datasets.Sequence(datasets.Image()))
    return data.to_iterable_dataset(num_shards=shards)


class Lines:
    """A user's own iterable."""

    def __init__(self, records: list[Any]) -> None:
        self.records, self.epochs = records, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records)


def test_no_image_is_decoded_before_it_is_asked_for(decodings: list[int]) -> None:
    stream = RecordStream(streamed(7), COLUMNS)
    found = list(stream.usable(0, 3))
    assert data_fingerprint(stream)["records"] is None and not decodings
    assert [(row, record["chosen"]) for row, record in found] == [(n, f"Number {n}.") for n in range(3, 7)]
    assert stream.decoded(found[1][1])["images"][0].getpixel((0, 0)) == (4, 0, 0) and decodings


def test_images_are_those_of_the_dataset_itself() -> None:
    given = streamed(3).cast_column("images", datasets.Sequence(datasets.Image(mode="L")))
    stream = RecordStream(given, COLUMNS)
    for (_, record), own in zip(stream.usable(0, 0), given, strict=True):
        (found,), (expected,) = stream.decoded(record)["images"], own["images"]
        assert found.mode == expected.mode == "L" and found.tobytes() == expected.tobytes()


def test_a_shuffled_dataset_continues_in_its_order_of_any_epoch() -> None:
    given = streamed(40).shuffle(seed=3, buffer_size=7)
    stream = RecordStream(given, COLUMNS)
    orders = []
    for epoch in range(3):
        given.set_epoch(epoch)
        orders.append([record["chosen"] for record in given])
        for begin in (0, 11):
            assert [record["chosen"] for _, record in stream.usable(epoch, begin)] == orders[-1][begin:]
    assert orders[0] != orders[1] != orders[2]


def test_an_iterable_of_ones_own_is_told_the_epoch_and_begins_again() -> None:
    lines = Lines(rows(5))
    stream = RecordStream(lines, COLUMNS)
    for epoch, begin in ((0, 0), (1, 0), (1, 3)):
        assert [row for row, _ in stream.usable(epoch, begin)] == list(range(begin, 5))
    assert lines.epochs == [0, 1, 1]
    assert stream.decoded(lines.records[0]) is lines.records[0]


def test_bad_rows_are_named_or_skipped_and_rows_of_text_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bad = rows(8)
    bad[1]["images"] = []
    del bad[2]["chosen"]
    bad[4] = "no record"  # type: ignore[call-overload]
    bad[5]["images"] = None
    with pytest.raises(
        ValueError, match="records: row 2: needs the columns images, prompt, chosen, got images, prompt"
    ):
        list(RecordStream(Lines(bad), COLUMNS).usable(0, 0))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        assert [row for row, _ in RecordStream(Lines(bad), COLUMNS, "skip").usable(0, 0)] == [0, 3, 6, 7]
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "leaving out text-only rows, the first is row 1 of epoch 0" and len(said) == 3
    with pytest.raises(ValueError, match="records: needs at least one that can be used, got none"):
        list(RecordStream(Lines(bad[1:3]), COLUMNS, "skip").usable(0, 0))


def test_rows_of_text_and_files_that_only_the_dataset_can_open(tmp_path: Path) -> None:
    """A path into an archive, or on the Hub, is no file here, and reading it is left to the dataset."""
    given = [{"images": [{"bytes": None, "path": "zip://one.png::missing.zip"}]}, {"images": []}]
    data = datasets.Dataset.from_list([one | {"prompt": "What?", "chosen": "A."} for one in given])
    data = data.cast_column("images", datasets.Sequence(datasets.Image()))
    stream = RecordStream(data.to_iterable_dataset(), COLUMNS)
    ((row, record),) = stream.usable(0, 0)
    assert row == 0
    with pytest.raises(ExampleError, match="images: needs images that can be decoded, got a row whose reading fails"):
        stream.decoded(record)


def test_the_fingerprint_reads_the_first_usable_record() -> None:
    read: list[int] = []

    class Counting(Lines):
        def __iter__(self) -> Iterator[Any]:
            for number, record in enumerate(self.records):
                read.append(number)
                yield record

    first, same, other = (RecordStream(Counting(some), COLUMNS) for some in (rows(4), rows(9), rows(4)[1:]))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert read == [0, 0, 0]


def test_what_is_a_stream() -> None:
    assert is_stream(streamed(3)) and is_stream(Lines([])) and is_stream(iter([]))
    assert not any(map(is_stream, ([], "text", {}, 3, datasets.Dataset.from_list(rows(1)))))
    with pytest.raises(TypeError, match="records: needs an iterable that can begin again, got list_iterator"):
        RecordStream(iter(rows(1)), COLUMNS)
