"""The files in which benchmarks are published."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation.benchmark import Question

OWN_INSTRUCTION = "the library's own, not the published one"
_SHOWN = 20  # missing images that an error names


def column(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *names: str) -> list[Any]:
    """The value of each row in the first of the columns `names` that it has. Raises ValueError if a row has none."""
    found = []
    for number, row in enumerate(rows, start=1):
        name = next((name for name in names if name in row), None)
        if name is None:
            raise ValueError(f"{path}: needs a column {' or '.join(names)}, row {number} has {sorted(row)}")
        found.append(row[name])
    return found


def require_files(benchmark: str, source: str, *paths: Path) -> None:
    """Raise FileNotFoundError that names every file that is missing.

    benchmark: its name.
    source: where the files come from.
    paths: files, or patterns of files of which one at least has to be there.
    """
    missing = [str(path) for path in paths if not any(path.parent.glob(path.name))]
    if missing:
        raise FileNotFoundError(f"{benchmark}: needs the files {', '.join(missing)}, which are missing; get {source}")


def missing_images(questions: Iterable[Question]) -> None:
    """Raise FileNotFoundError with the number of images that are missing and the first 20 of them."""
    missing = [str(path) for path in dict.fromkeys(question.image for question in questions) if not path.is_file()]
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise FileNotFoundError(
            f"images: needs every image of the questions, {len(missing)} are missing: {named}; "
            "name their folder with the option images"
        )


def read_rows(path: Path, *columns: str) -> list[dict[str, Any]]:
    """The rows of a JSON list or a JSON Lines file. Raises ValueError if a row lacks one of the columns."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()[:1]
    rows = read_json(path) if start == b"[" else read_jsonl(path)
    check_columns(path, enumerate(rows, start=1), columns)
    if not rows:
        raise ValueError(f"{path}: needs a row or more, got none")
    return rows


def read_table(path: Path, *columns: str) -> dict[str, dict[str, Any]]:
    """The rows of a JSON object of objects by their ids. Raises ValueError for any other file."""
    table = read_json(path)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path}: needs an object of rows by their ids, got {type(table).__name__}")
    check_columns(path, table.items(), columns)
    return table


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError that names the file and the line for a broken one."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_unique(path, [name for name, _ in pairs])
        return dict(pairs)

    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: needs JSON, line {error.lineno} is none ({error.msg})") from error


def read_instruction(path: str | os.PathLike[str] | None, own: str) -> tuple[str, str]:
    """The instruction of a judge, and whose it is, for the facts of a result.

    path: a text file with a published instruction; None for the library's own.
    own: the library's own.

    Raises ValueError unless the file has as many places {} to fill as `own`.
    """
    if path is None:
        return own, OWN_INSTRUCTION
    text = Path(path).read_text(encoding="utf-8")
    if text.count("{}") != own.count("{}"):
        raise ValueError(f"instruction: needs {own.count('{}')} places {{}} to fill, {path} has {text.count('{}')}")
    return text, given_instruction(path)


def given_instruction(path: str | os.PathLike[str]) -> str:
    """Whose instruction a file has, for the facts of a result."""
    return f"{Path(path).name}, given by the user"


def filled(instruction: str, *values: str) -> str:
    """The instruction with the values in its places {}."""
    first, *others = instruction.split("{}")
    return first + "".join(value + other for value, other in zip(values, others, strict=True))


def check_columns(path: Path, rows: Iterable[tuple[object, Any]], columns: Sequence[str]) -> None:
    """Raise ValueError for a row without one of the columns, as a file of another benchmark has.

    rows: the number or id of each row, and the row.
    """
    for name, row in rows:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        if not isinstance(row, dict) or any(column not in row for column in columns):
            raise ValueError(f"{path}: needs the columns {', '.join(columns)}, row {name} has {found}; is it the file?")


def check_unique(path: Path, ids: Sequence[object]) -> None:
    """Raise ValueError if an id occurs twice."""
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: needs every id once, got {repeated(ids)!r} twice")


def repeated(ids: Sequence[object]) -> object:
    """The first id that occurred before."""
    seen: set[object] = set()
    return next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def check_ids(name: str, given: Mapping[str, str], ids: Collection[str]) -> None:
    """Raise ValueError unless there is exactly one text for every id.

    name: "answers" or "verdicts", for the message.
    given: texts by id.
    ids: of the questions or of the requests.
    """
    known = set(ids)
    missing, unknown = [i for i in ids if i not in given], [i for i in given if i not in known]
    if missing or unknown:
        raise ValueError(
            f"{name}: needs one for each of {len(ids)} questions, lacks {len(missing)} {missing[:3]}, "
            f"has {len(unknown)} of other questions {unknown[:3]}"
        )


def read_sections(path: str | os.PathLike[str], *names: str) -> list[list[dict[str, Any]]]:
    """The lists `names` of a JSON file with one object. Raises ValueError if one is missing."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: needs an object with {', '.join(names)}, got {found}")
    return [content[name] for name in names]
