"""The folder of a run belongs to one run, and to one process at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbdhs.data import write_whole
from mmbdhs.runs.identity import differences

_LOG = logging.getLogger("mmbdhs")

RECORD = "run.json"


class FolderInUseError(ValueError):
    """The folder holds another run, or another process holds it."""


def check_same_run(folder: Path, identity: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """Compare the identity of a run with the one that the folder's run.json records.

    identity: JSON-ready, as nested dicts.
    free: paths of entries that may differ, such as "config.epochs".

    Returns the differences that are free. Raises FolderInUseError that names all others.
    """
    record, old = folder / RECORD, read_record(folder)
    if not old:
        _LOG.warning("%s is missing, so whether this is the same run cannot be checked", record)
        return []
    found = differences(old, json.loads(json.dumps(identity)))
    allowed = [line for line in found if line.partition(":")[0] in free]
    if other := [line for line in found if line not in allowed]:
        raise FolderInUseError(
            f"{folder} holds another run, this one differs in {'; '.join(other)}. Use its data and settings, or choose "
            f"another folder. To continue in spite of a difference, delete its entry in {record}"
        )
    return allowed


def read_record(folder: Path) -> dict[str, Any]:
    """The identity of a run in the folder's run.json; empty where there is none. Raises ValueError for another file."""
    record = folder / RECORD
    if not record.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record}: needs a JSON object, got another text ({error})") from error
    return found


def write_record(folder: Path, identity: dict[str, Any]) -> None:
    """Write the identity of a run to the folder's run.json."""
    write_whole(folder / RECORD, [json.dumps(identity, indent=2).encode() + b"\n"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which the system releases when the process ends, however it ends.

    Raises FolderInUseError if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                message = f"output: {folder} is in use by another process. Choose another folder"
                raise FolderInUseError(message) from error
            _LOG.warning("%s cannot be locked (%s): make sure that no other process writes to it", folder, error)
        yield
    finally:
        os.close(handle)
