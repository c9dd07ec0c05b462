"""Files that appear complete or not at all, also after a power cut."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> int:
    """Write a file under a temporary name in the same folder, have it written to the disk, then rename it. Returns the
    number of chunks.

    Until then an older file of that name stays as it is, also when a chunk cannot be made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "wb") as file:
            count = sum(1 for chunk in chunks if file.write(chunk) >= 0)
        os.chmod(temporary, 0o644)
        sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(target.parent)
    return count


def sync(path: str | os.PathLike[str]) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
