"""The folder of a run: it belongs to one run, and to one process at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbdhs.data import write_whole
from mmbdhs.training.checkpoints import checkpoints, newest_whole, recover
from mmbdhs.training.run_identity import LENGTH, differences

_LOG = logging.getLogger("mmbdhs")

_RECORD = "run.json"
_RESUME_ADVICE = "Pass resume=True to continue, or choose another output"


class FolderInUseError(ValueError):
    """The output folder holds another run, or another process holds it."""


def check_unused(output: Path, resume: bool, advice: str = _RESUME_ADVICE) -> None:
    """Raise FolderInUseError if the folder holds a run that is not to be resumed, and ValueError for a file.

    advice: what the user can do, in the words of the interface that the error appears in.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: needs a folder, {output} is a file")
    names = ["final"] * (output / "final").exists() + [path.name for path in checkpoints(output)]
    if names and not resume:
        raise FolderInUseError(f"output: needs a folder without a run, {output} already contains {names[-1]}. {advice}")


@contextmanager
def run_folder(output: Path, identity: dict[str, Any], resume: bool, is_main: bool) -> Iterator[Path | None]:
    """Hold the folder for the length of a run, and yield the checkpoint to resume from, or None.

    identity: from `run_identity`; written to run.json by the main process.
    is_main: whether this is the main process, which alone writes and locks.

    Raises FolderInUseError for a folder with another run in it, naming each difference, or one that another process
    holds, and ValueError where no checkpoint is whole.
    """
    check_unused(output, resume)
    checkpoint = newest_whole(output)
    if checkpoint:
        _check_same_run(output / _RECORD, identity)
    if not is_main:
        yield checkpoint
        return
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        recover(output)
        write_whole(output / _RECORD, [json.dumps(identity, indent=2).encode() + b"\n"])
        yield checkpoint


def _check_same_run(record: Path, identity: dict[str, Any]) -> None:
    if not record.is_file():
        _LOG.warning("%s is missing, so whether this is the same run cannot be checked", record)
        return
    old = json.loads(record.read_text(encoding="utf-8"))
    found = differences(old, json.loads(json.dumps(identity)))
    length = [line for line in found if line.partition(":")[0] in {f"config.{name}" for name in LENGTH}]
    if length:
        _LOG.warning("the length of the run changed (%s); the learning rates follow the new one", "; ".join(length))
    if other := [line for line in found if line not in length]:
        raise FolderInUseError(
            f"resume: needs the run of {record.parent}, this one differs in {'; '.join(other)}. Use its data and "
            f"settings, or choose another output. To continue in spite of a difference, delete its entry in {record}"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which the system releases when the process ends, however it ends."""
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
                message = f"output: {folder} is in use by another process. Choose another output"
                raise FolderInUseError(message) from error
            _LOG.warning("%s cannot be locked (%s): make sure that no other process writes to it", folder, error)
        yield
    finally:
        os.close(handle)
