"""Checkpoints are complete or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mmbdhs.training.checkpoints import checkpoint_path, checkpoints, load_state, prune, save_model


class Saved:
    """A model or processor that writes one file."""

    def __init__(self, name: str, content: str = "") -> None:
        self.name, self.content = name, content

    def save_pretrained(self, folder: Path, **settings: object) -> None:
        (folder / self.name).write_text(self.content)


class FullDisk:
    def save_pretrained(self, folder: Path, **settings: object) -> None:
        (folder / "half").write_text("written before the disk was full")
        raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_state_is_loaded_to_the_bit(tmp_path: Path) -> None:
    state = {"step": 3, "trained": {"w": torch.randn(5)}, "scaler": {}}
    folder = checkpoint_path(tmp_path / "new", 3)
    save_model(folder, Saved("model"), Saved("processor"), {}, "card", state)
    assert names(folder) == ["README.md", "checksums.json", "model", "processor", "trainer.pt"]
    found = load_state(folder)
    assert found["step"] == 3 and torch.equal(found["trained"]["w"], state["trained"]["w"])


@pytest.mark.parametrize("model, processor", [(FullDisk(), Saved("processor")), (Saved("model"), FullDisk())])
def test_a_full_disk_leaves_what_was_there(model: object, processor: object, tmp_path: Path) -> None:
    save_model(tmp_path / "final", Saved("model", "old"), Saved("processor"), {}, "card")
    for folder in ("final", "checkpoint-2"):
        with pytest.raises(OSError, match="No space left"):
            save_model(tmp_path / folder, model, processor, {}, "card", {})
    assert names(tmp_path) == ["final"] and (tmp_path / "final/model").read_text() == "old"


def test_a_new_save_replaces_the_old_one_and_what_a_kill_left(tmp_path: Path) -> None:
    save_model(tmp_path / "final", Saved("old"), Saved("processor"), {}, "card")
    (tmp_path / ".final.partial").mkdir()
    (tmp_path / ".final.partial/half").touch()
    save_model(tmp_path / "final", Saved("new"), Saved("processor"), {}, "card")
    assert names(tmp_path) == ["final"] and names(tmp_path / "final") == ["README.md", "new", "processor"]


def test_only_complete_checkpoints_count_and_the_newest_stay(tmp_path: Path) -> None:
    for step in (900, 1000, 1_000_000):
        save_model(checkpoint_path(tmp_path, step), Saved("model"), Saved("processor"), {}, "card", {})
    (tmp_path / "checkpoint-950").mkdir()
    (tmp_path / ".checkpoint-1001.partial").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-900",
        "checkpoint-1000",
        "checkpoint-1000000",
    ]
    prune(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1000", "checkpoint-1000000"]
