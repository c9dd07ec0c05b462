"""The progress bar of a run: what it says at every moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pair_runs import QUICK, loaded, shared_words, small_shards, write_scenes

from mmbdhs.pairs import Figures, sample_dataset
from mmbdhs.pairs.progress import ProgressBar
from mmbdhs.pairs.run_folder import RunFolder

pytest.importorskip("pyarrow")


def figures(accepted: dict[int, int]) -> Figures:
    """Pairs by the iteration that was accepted; 0 for those that stayed similar."""
    pairs = sum(accepted.values())
    return Figures([*(("accepted", iteration, count) for iteration, count in accepted.items()), ("guided", 1, pairs)])


def test_the_bar_adds_the_current_shard_to_the_finished_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with ProgressBar(RunFolder(tmp_path, examples=40, shard_size=10), iterations=3, shown=True) as bar:
        bar.finish_shard(figures({1: 5, 2: 5}))
        bar.show(figures({1: 3, 0: 7}), live_branches=17)
        assert bar._bar.n == 20 and bar._bar.total == 40
        bar._bar.refresh()
        shown = capsys.readouterr().err.rpartition("\r")[2]
        assert "20/40" in shown and "pair/s" in shown and "accepted 40% 65% 65%, 17 branches" in shown
        bar.show(Figures(), live_branches=4)  # the shard began again with fewer branches
        assert bar._bar.n == 10


def test_a_run_that_goes_on_begins_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", 4), tmp_path / "run"
    for _ in range(2):
        sample_dataset(*loaded(), scenes, out, QUICK, shared_words, small_shards(2))
        shown = capsys.readouterr().err
        (out / "data/train-00001.parquet").unlink()
    assert "sampling:  50%" in shown and "2/4" in shown


def test_no_bar_is_shown_where_none_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scenes = write_scenes(tmp_path / "scenes", 2)
    sample_dataset(*loaded(), scenes, tmp_path / "run", QUICK, shared_words, small_shards(2), progress=False)
    assert "sampling" not in capsys.readouterr().err
