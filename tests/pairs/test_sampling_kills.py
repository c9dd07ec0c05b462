"""A run over a data set that is killed at any moment ends as one that was never disturbed, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS, SEED = 30, 0


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS and report["runs"] >= 2 and report["shards"] == 4
    assert report["differences"] == []


def main(folder: Path) -> None:
    """Kill runs over 12 scenes, one of which has no image, in shards of three."""
    import torch
    from helpers.kills import kill_runs
    from helpers.pair_runs import QUICK, differing_files, loaded, shared_words, small_shards, write_scenes

    from mmbdhs.pairs import sample_dataset

    scenes = write_scenes(folder / "scenes", 12)
    (folder / "scenes/images/4.png").unlink()

    def run(out: Path) -> None:
        torch.set_num_threads(1)
        sample_dataset(*loaded(), scenes, out, QUICK, shared_words, small_shards(3), progress=False)

    report = kill_runs(folder, run, differing_files, KILLS, SEED)
    print(json.dumps(report | {"shards": len(list((folder / "whole/data").iterdir()))}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import mmbdhs.pairs  # noqa: F401

    main(Path(sys.argv[1]))
