"""Checkpoints that are complete or absent: a model that `from_pretrained` loads, and the state to resume training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATE = "trainer.pt"


def save_model(
    folder: Path, model: Any, processor: Any, weights: dict[str, Tensor], state: dict[str, Any] | None = None
) -> None:
    """Write the model, or only its adapters if it has any, the processor, and the trainer's state.

    folder: appears complete or not at all; an older folder of that name stays until the new one is complete.
    weights: full tensors under the names of the model's state_dict.
    state: what `load_state` returns later; None for a model that is not a checkpoint.

    Raises what writing raises, such as OSError when the disk is full.
    """
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        if state is not None:
            torch.save(state, partial / _STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """Load the state that `save_model` wrote, with its tensors on the CPU."""
    return torch.load(folder / _STATE, map_location="cpu", weights_only=True)


def checkpoint_path(output: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps."""
    return output / f"checkpoint-{step:06d}"


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if (path / _STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def checkpoint_to_resume(
    output: Path, resume: bool, advice: str = "Pass resume=True to continue, or choose another output"
) -> Path | None:
    """The newest complete checkpoint, or None if there is none yet.

    advice: what the user can do, in the words of the interface that the error appears in.

    Raises ValueError if there is a checkpoint and the run is not to be resumed.
    """
    found = checkpoints(output)
    if found and not resume:
        raise ValueError(
            f"output: needs a folder without checkpoints, {output} already contains {found[-1].name}. {advice}"
        )
    return found[-1] if found else None


def prune(output: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoints(output)[:-keep]:
        _remove(path)


def _remove(folder: Path) -> None:
    """Rename first, then delete, so that a crash never leaves half a checkpoint under its real name."""
    partial = _partial_path(folder)
    os.replace(folder, partial)
    shutil.rmtree(partial)


def _partial_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that replaces `folder` at the end, and is deleted if there is an error."""
    partial = _partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
