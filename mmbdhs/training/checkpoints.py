"""Checkpoints that are complete or absent: a model that `from_pretrained` loads, and the state to resume training."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbdhs.data import sync
from mmbdhs.training.heads import save_head, split_head

_LOG = logging.getLogger("mmbdhs")

_STATE, _CHECKSUMS = "trainer.pt", "checksums.json"
_PREVIOUS = ".previous"
_OURS = re.compile(r"\.(checkpoint-\d+|final)\.(partial|previous)|\.(log\.jsonl|run\.json)\..*")
_FULL = 16 * 2**20  # bytes; with less than that left, an error of writing means a full disk


def save_model(
    folder: Path,
    model: Any,
    processor: Any,
    weights: dict[str, Tensor],
    card: str,
    state: dict[str, Any] | None = None,
    head: str | None = None,
) -> None:
    """Write the model, or only its adapters if it has any, the processor, and the trainer's state.

    folder: appears complete or not at all; an older folder of that name stays until the new one takes its place.
    weights: full tensors under the names of the model's state_dict.
    card: text of the model card, in place of the one that PEFT writes.
    state: what `load_state` returns later; None for a model that is not a checkpoint.
    head: the name of a head among the weights, which gets a file of its own; None for no head.

    Raises what writing raises; on a full disk that is an OSError.
    """
    with _complete_or_absent(folder) as partial:
        if head is not None:
            weights, of_head = split_head(weights, head)
            save_head(partial, head, of_head)
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if state is not None:
            torch.save(state, partial / _STATE)
            sums = {str(path.relative_to(partial)): _checksum(path) for path in _files(partial)}
            (partial / _CHECKSUMS).write_text(json.dumps({"folder": folder.name, "blake2b": sums}, indent=2) + "\n")


def load_state(folder: Path) -> dict[str, Any]:
    """Load the state that `save_model` wrote, with its tensors on the CPU."""
    return torch.load(folder / _STATE, map_location="cpu", weights_only=True)


def checkpoint_path(output: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps."""
    return output / f"checkpoint-{step}"


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if (path / _STATE).is_file()]
    return sorted(
        (path for path in found if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )


def newest_whole(output: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written, or None if there are no checkpoints.

    Damaged ones are named in the log. Raises ValueError if no other is left.
    """
    damaged = []
    for folder in reversed(checkpoints(output)):
        if (problem := _damage(folder)) is None:
            return folder
        _LOG.warning("%s is damaged (%s), so the checkpoint before it is used", folder, problem)
        damaged.append(f"{folder}: {problem}")
    if damaged:
        raise ValueError(f"resume: needs a checkpoint that is whole, got {'; '.join(damaged)}")
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        written = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        if written["folder"] != folder.name:
            return f"it was written as {written['folder']}"
        changed = [name for name, found in written["blake2b"].items() if _checksum(folder / name) != found]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(changed)} changed" if changed else None


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
    """Yield a hidden folder that takes the place of `folder` at the end, and is deleted if there is an error."""
    partial = _partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*_files(partial), partial):
            sync(path)
        _take_place(partial, folder)
        sync(folder.parent)
    except Exception as error:
        if not isinstance(error, OSError) and shutil.disk_usage(partial).free < _FULL:
            whole = ", ".join(path.name for path in checkpoints(folder.parent)) or "none"
            reason = f"{os.strerror(errno.ENOSPC)}: {folder} was not written; checkpoints that are: {whole}"
            raise OSError(errno.ENOSPC, reason) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`. Where the system can exchange two folders, one of them is always there;
    elsewhere `recover` restores the old one if the process ends in between."""
    if not folder.exists():
        os.replace(partial, folder)
    elif not _exchange(partial, folder):
        previous = folder.with_name(f".{folder.name}{_PREVIOUS}")
        os.replace(folder, previous)
        os.replace(partial, folder)
        shutil.rmtree(previous)


def recover(output: Path) -> None:
    """Delete what a killed process left half written or half deleted, and restore what it was about to replace."""
    for path in list(output.iterdir()):
        if path.name.endswith(_PREVIOUS) and _OURS.fullmatch(path.name):
            target = path.with_name(path.name.removeprefix(".").removesuffix(_PREVIOUS))
            if not target.exists():
                os.replace(path, target)
        if path.exists() and _OURS.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
