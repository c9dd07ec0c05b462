"""Tables of raw rows: every form against what wrote it, what is left unread, and files that are broken."""

from __future__ import annotations

import io
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow
import pytest
from helpers.published_rows import PNG, TALK
from pyarrow import parquet

from mmbdhs.data import open_records, usable_rows
from mmbdhs.data.fingerprints import parquet_fingerprint
from mmbdhs.data.tables import open_table
from mmbdhs.errors import ExampleError

ROWS = [{"n": number, "text": f"日本 {number}", "deep": [{"a": [number]}]} for number in range(23)]


def write_shards(folder: Path, counts: tuple[int, ...], group: int) -> None:
    begin = 0
    for number, count in enumerate(counts):
        table = pyarrow.Table.from_pylist(ROWS[begin : begin + count], schema=pyarrow.Table.from_pylist(ROWS).schema)
        parquet.write_table(table, folder / f"train-{number:05}.parquet", row_group_size=group)
        begin += count


def check_rows(table: object, rows: list[object], columns: tuple[str, ...]) -> None:
    """Compare rows in random order, and columns."""
    order = random.Random(0).sample(range(len(rows)), len(rows))
    assert len(table) == len(rows) and table.columns == columns
    assert [table[number] for number in order] == [rows[number] for number in order]
    assert [table.without_bytes(number) for number in order] == [rows[number] for number in order]
    for name in columns:
        assert list(table.column(name)) == [row.get(name) for row in rows]
    assert list(table.column("none such")) == [None] * len(rows)


@pytest.mark.parametrize("group", [1, 2, 7, 100])
@pytest.mark.parametrize("counts", [(23,), (1, 22), (5, 0, 17, 1), (0, 23)])
def test_rows_of_parquet_files_in_any_order(counts, group, tmp_path):
    write_shards(tmp_path, counts, group)
    for data in (tmp_path, tmp_path / "train-*.parquet", str(tmp_path / "*")):
        check_rows(open_table(data), ROWS, ("n", "text", "deep"))


def test_parquet_files_of_unlike_columns(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist([{"a": 1}, {"a": 2}]), tmp_path / "1.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"b": 3}]), tmp_path / "2.parquet")
    check_rows(open_table(tmp_path), [{"a": 1}, {"a": 2}, {"b": 3}], ("a", "b"))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_rows_of_json_lines_in_any_order(start, ending, end, tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "a.jsonl").write_bytes((start + ending.join(lines) + end).encode())
    check_rows(open_table(tmp_path / "a.jsonl"), ROWS, ("n", "text", "deep"))


def test_a_json_file_and_a_list(tmp_path):
    mixed = [*ROWS, {"n": "x", "more": None}]
    (tmp_path / "a.JSON").write_text(json.dumps(mixed))
    for data in (tmp_path / "a.JSON", mixed, tuple(mixed)):
        check_rows(open_table(data), mixed, ("n", "text", "deep", "more"))


def test_a_dataset_with_indices_and_a_transform(tmp_path):
    def fails(batch: object) -> object:
        raise RuntimeError("a transform was run")

    dataset = datasets.Dataset.from_list(ROWS)
    for data in (dataset, dataset.with_transform(fails), dataset.with_format("numpy")):
        check_rows(open_table(data), ROWS, ("n", "text", "deep"))
    chosen = [7, 2, 22]
    check_rows(open_table(dataset.select(chosen)), [ROWS[number] for number in chosen], ("n", "text", "deep"))


def test_values_of_mixed_types_that_datasets_stores_as_json(tmp_path):
    rows = [{"id": 1, "talk": [{"from": "x", "value": [1]}]}, {"id": "b", "talk": [{"from": "y", "value": "z"}]}]
    types = {"id": datasets.Json(), "talk": [{"from": datasets.Value("string"), "value": datasets.Json()}]}
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features(types))
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for data in (dataset, tmp_path / "a.parquet", tmp_path / "saved"):
        check_rows(open_table(data), rows, ("id", "talk"))


def test_threads_read_the_same_rows(tmp_path):
    write_shards(tmp_path, (11, 12), group=3)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    order = random.Random(1).choices(range(23), k=400)
    for data in (tmp_path, tmp_path / "a.jsonl"):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(open_table(data).__getitem__, order)) == [ROWS[number] for number in order]


def test_the_fingerprint_of_parquet_files_sees_names_sizes_and_both_ends(tmp_path):
    def found(name: str = "a", changed: int | None = None, more: bytes = b"") -> str:
        content = bytearray(3 * 2**20)
        if changed is not None:
            content[changed] = 1
        (tmp_path / name).write_bytes(content + more)
        return parquet_fingerprint([tmp_path / name], [100])

    seen = [0, 2**20 - 1, 2**21 - 100, 3 * 2**20 - 1]
    assert len({found(), found("b"), found(more=b"x"), *(found(changed=place) for place in seen)}) == 7
    assert found() == found(changed=2**20) == found(changed=2**21 - 101)


def write_images(path: Path, images: list[object], kind: str) -> None:
    """Parquet of conversations in groups of two, with the images in a column `image`, or in lists in `images`."""
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"image": pyarrow.array(images, image) if kind == "image" else None}
    columns["images"] = (
        pyarrow.array([[one, one] for one in images], pyarrow.list_(image)) if kind == "images" else None
    )
    found = {name: column for name, column in columns.items() if column is not None}
    talks = [[TALK[0] | {"value": "Alike?"}, TALK[1]]] * len(images)
    parquet.write_table(pyarrow.table(found | {"conversations": talks}), path, row_group_size=2, compression="none")


def spoil_bytes(path: Path) -> int:
    """Overwrite the pages of all images' bytes with what no reader takes. Returns how many chunks these are."""
    content, count = bytearray(path.read_bytes()), 0
    footer = parquet.ParquetFile(path).metadata
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            if chunk.path_in_schema.endswith(".bytes"):
                begin, count = chunk.dictionary_page_offset or chunk.data_page_offset, count + 1
                content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    return count


@pytest.mark.parametrize("kind", ["image", "images"])
def test_what_does_not_need_the_images_reads_none_of_them(kind, tmp_path):
    path, images = tmp_path / "a.parquet", [{"bytes": PNG, "path": "a.png"}] * 4
    write_images(path, images, kind)
    whole = [open_records(path, turns="every")[number] for number in range(4)]
    assert spoil_bytes(path) == 2
    records = open_records(path, turns="every")
    assert len(records) == 4 and usable_rows(records, ["images", "prompt", "chosen"]) == [0, 1, 2, 3]
    stand_in = {"images": [{"bytes": b"", "path": "a.png"}] * (1 if kind == "image" else 2)}
    assert [records.without_bytes(number) for number in range(4)] == [record | stand_in for record in whole]
    assert len(list(open_table(path).column("conversations"))) == 4
    with pytest.raises(
        ValueError, match=r"a\.parquet: needs a file that is whole, got one that is cut short or broken"
    ):
        records[0]


def test_images_are_looked_at_where_some_lack_their_bytes(tmp_path):
    (tmp_path / "b.png").touch()
    paths = [{"bytes": None, "path": name} for name in ("b.png", "gone.png")]
    images = [{"bytes": PNG, "path": "a.png"}, paths[0], None, {"bytes": PNG, "path": None}, paths[1]]
    write_images(tmp_path / "a.parquet", images, "image")
    records = open_records(tmp_path / "a.parquet")
    assert usable_rows(records, ["images"], "skip") == [0, 1, 3]
    with pytest.raises(ValueError, match=r"row 4: images: needs a file that is there, got '.*gone\.png'"):
        usable_rows(records, ["images"])


def test_rows_of_a_dataset_without_bytes():
    image = {"bytes": PNG, "path": "a.png"}
    types = datasets.Features({"images": datasets.List(datasets.Image()), "raw": datasets.Value("binary")})
    dataset = datasets.Dataset.from_dict({"images": [[image], [], None], "raw": [b"x", None, b"z"]}, features=types)
    table = open_table(dataset)
    assert [table[number] for number in range(3)] == [
        {"images": [image], "raw": b"x"},
        {"images": [], "raw": None},
        {"images": None, "raw": b"z"},
    ]
    assert [table.without_bytes(number)["raw"] for number in range(3)] == [b"", None, b""]
    assert table.without_bytes(0)["images"] == [{"bytes": b"", "path": "a.png"}]


def test_the_split_that_is_read(tmp_path):
    for name in ("test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist([{"from": name}]), tmp_path / f"data/{name}.parquet")
    table = open_table(tmp_path)
    assert [row["from"] for row in map(table.__getitem__, range(len(table)))] == [
        "train-00000-of-00002",
        "train-00001-of-00002",
    ]
    one, two = (datasets.Dataset.from_list([{"n": number}]) for number in (1, 2))
    for splits in ({"train": one, "test": two}, {"other": one}):
        assert open_table(datasets.DatasetDict(splits))[0] == {"n": 1}
    message = "needs a split train, got a, b. Pass one of them as split"
    datasets.DatasetDict({"a": one, "b": two}).save_to_disk(tmp_path / "saved")
    for number, name in enumerate("ab"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (one, two)[number].to_parquet(tmp_path / f"shards/{name}-00000-of-00001.parquet")
    for data in (datasets.DatasetDict({"a": one, "b": two}), tmp_path / "saved", tmp_path / "shards"):
        with pytest.raises(ValueError, match=message):
            open_table(data)


CONTENTS = [
    ("a.json", '[\n{"a": 1},\n{"a": }]', "a.json: needs valid JSON, line 3, column 7 is not (Expecting value)"),
    ("a.json", '{"a": 1}\n{"a": 2}', "line 2, column 1 is not (Extra data). If it holds one object a line, let its"),
    ("a.json", '{"a": 1}', "a.json: needs a list of objects, got dict"),
    ("a.json", '"\udce9"', "a.json: needs valid JSON, it cannot be read ('utf-8' codec"),
    ("a.json", "[" * 100000, "a.json: needs valid JSON, it cannot be read ("),
    ("a.json", "", "a.json: needs valid JSON, line 1, column 1 is not (Expecting value)"),
    ("a.csv", "a,b", "a.csv: needs a file that ends in .json, .jsonl, .parquet, got .csv"),
    ("a", "a,b", "a: needs a file that ends in .json, .jsonl, .parquet, got no suffix"),
    ("a.parquet", "", "a.parquet: needs a file that is whole, got one that is cut short or broken ("),
    ("a.parquet", "x" * 100, "a.parquet: needs a file that is whole, got one that is cut short or broken ("),
    ("state.json", "{", "needs a file that is whole, got one that is cut short or broken ("),
]


@pytest.mark.parametrize(("name", "content", "message"), CONTENTS)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as caught:
        open_table(tmp_path if name == "state.json" else tmp_path / name)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_parquet_file_cut_short_at_any_place_is_named(tmp_path):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    content = file.getvalue()
    for length in range(0, len(content), 97):
        (tmp_path / "a.parquet").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.parquet: needs a file that is whole"):
            open_table(tmp_path)


def test_data_in_no_form_says_what_to_pass(tmp_path):
    (tmp_path / "a.txt").touch()
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    cases = {
        "data: needs rows that can be counted, got IterableDataset. Load it without streaming=True": stream,
        "data: needs a .json, .jsonl or .parquet file, a folder or glob pattern": 3,
        "got generator": (row for row in ROWS),
        "got dict": {"a": [1]},
    }
    for message, data in cases.items():
        with pytest.raises(TypeError) as caught:
            open_table(data)
        assert message in str(caught.value)
    for data in (tmp_path, tmp_path / "*.txt", tmp_path / "gone.json", "owner/name"):
        with pytest.raises(ValueError, match=r"needs (\.parquet files or|a pattern of|a file or folder that is there)"):
            open_table(data)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    write_shards(tmp_path, (23,), group=10)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    for data, module in ((tmp_path, "pyarrow"), (tmp_path / "saved", "datasets")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            patched.delitem(sys.modules, f"{module}.parquet", raising=False)
            with pytest.raises(
                ImportError, match=rf"data: needs {module}, in the extra 'data': pip install 'mmbdhs\[data"
            ):
                open_table(data)
            (tmp_path / "a.json").write_text("[]")
            assert len(open_table(tmp_path / "a.json")) == len(open_table([])) == 0


def test_a_line_that_is_no_object_is_one_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n{"a": 3}\n')
    table = open_table(tmp_path / "a.jsonl")
    assert (len(table), table[2], list(table.column("a"))) == (3, {"a": 3}, [1, None, 3])
    with pytest.raises(ExampleError, match="needs one JSON object a line, got list in line 2"):
        table[1]


def test_another_split_than_train_is_read_where_it_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_list([{"n": number}]) for number in (1, 2))
    both = datasets.DatasetDict({"train": one, "test": two})
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "shards").mkdir()
    for name, part in both.items():
        part.to_parquet(tmp_path / f"shards/{name}-00000-of-00001.parquet")
    for data in (both, tmp_path / "saved", tmp_path / "shards"):
        assert [open_table(data, split)[0] for split in ("train", "test")] == [{"n": 1}, {"n": 2}]
        with pytest.raises(ValueError, match=r"needs a split dev, got (train, test|test, train)"):
            open_table(data, "dev")
    named = datasets.Dataset.from_list([{"n": 3}], split="test")
    assert open_table(named)[0] == open_table(named, "test")[0] == {"n": 3}
    (tmp_path / "one.json").write_text('[{"n": 1}]')
    for data in ([{"n": 1}], tmp_path / "one.json", one, named):
        with pytest.raises(ValueError, match=r"needs a split dev, got (data without splits|test)"):
            open_table(data, "dev")
