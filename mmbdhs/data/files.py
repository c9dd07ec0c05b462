"""Files that appear complete or not at all, also after a power cut."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name in the same folder; at the end of the context have it written to
    the disk, and rename it.

    Until then an older file of that name stays as it is, also when the context ends with an error.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(target.parent)


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Delete what processes that were killed left of a file that they wrote by `whole_file`."""
    target = Path(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        left.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> int:
    """Write a file by `whole_file`. Returns the number of chunks."""
    with whole_file(path) as file:
        return sum(1 for chunk in chunks if file.write(chunk) >= 0)


def sync(path: str | os.PathLike[str]) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
