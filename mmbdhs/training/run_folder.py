"""The output folder of a training run, which may hold checkpoints to resume from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbdhs.runs import FolderInUseError, check_same_run, locked, write_record
from mmbdhs.training.checkpoints import checkpoints, newest_whole, recover
from mmbdhs.training.run_identity import LENGTH

_LOG = logging.getLogger("mmbdhs")

_RESUME_ADVICE = "Pass resume_from_checkpoint=True to continue, or choose another output_dir"


def check_unused(output: Path, resume: bool, advice: str = _RESUME_ADVICE) -> None:
    """Raise FolderInUseError if the folder holds a run that is not to be resumed, and ValueError for a file.

    advice: what the user can do, in the words of the interface that the error appears in.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir: needs a folder, {output} is a file")
    names = ["final"] * (output / "final").exists() + [path.name for path in checkpoints(output)]
    if names and not resume:
        raise FolderInUseError(
            f"output_dir: needs a folder without a run, {output} already contains {names[-1]}. {advice}"
        )


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
    if checkpoint and (length := check_same_run(output, identity, {f"config.{name}" for name in LENGTH})):
        _LOG.warning("the length of the run changed (%s); the learning rates follow the new one", "; ".join(length))
    if not is_main:
        yield checkpoint
        return
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        recover(output)
        write_record(output, identity)
        yield checkpoint
