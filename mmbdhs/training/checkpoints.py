"""Checkpoints that are whole or absent: a model that `from_pretrained` loads, and what resuming needs beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_STATE = "trainer.pt"


def save_model(
    folder: Path, model: nn.Module, processor: Any, weights: dict[str, Tensor], state: dict[str, Any] | None = None
) -> None:
    """Write model (adapters alone, if it has any) and processor, and `state` for `load_state`. weights: whole ones
    under the names of the model's state_dict. The folder appears
    complete or not at all; an older one of its name stays until then. Raises what writing raises, a full disk's OSError
    for one."""
    with _aside(folder) as aside:
        model.save_pretrained(aside, state_dict=weights)
        processor.save_pretrained(aside)
        if state is not None:
            torch.save(state, aside / _STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_model` was given, on the CPU."""
    return torch.load(folder / _STATE, map_location="cpu", weights_only=True)


def checkpoint_path(output: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return output / f"checkpoint-{step:06d}"


def checkpoints(output: Path) -> list[Path]:
    """The complete ones, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if (path / _STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def prune(output: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoints(output)[:-keep]:
        _remove(path)


def _remove(folder: Path) -> None:
    """Under its own name it is whole until it is gone."""
    going = _hidden(folder)
    os.replace(folder, going)
    shutil.rmtree(going)


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder of another name beside it, which takes its place at the end, or vanishes with an error."""
    aside = _hidden(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
