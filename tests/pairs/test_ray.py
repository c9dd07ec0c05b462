"""A run on two Ray workers that are killed at random moments ends as a run in one process, to the byte.

MMBDHS_RAY_KILLS=30 kills more often; each kill costs the seconds in which Ray starts another worker.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

KILLS, SEED = int(os.environ.get("MMBDHS_RAY_KILLS", "1")), 0


@pytest.mark.slow
def test_killed_workers_change_no_byte(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # As a program, because Ray pickles what that defines by value, so that workers need not find this file.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path)))}
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS and report["shards"] == 6 and report["missing"] == 0
    assert report["differences"] == []
    assert "config.seed: 0, now 1" in report["error of other settings"]


def parts(scenes: Path, out: Path, seed: int = 0) -> Any:
    """The folder and the sampler of a run, as a worker makes them."""
    from dataclasses import replace

    from helpers.pair_runs import QUICK, loaded, shared_words, small_shards

    from mmbdhs.data import open_records
    from mmbdhs.pairs.sampling_run import sampling_parts

    config = replace(QUICK, seed=seed)
    return sampling_parts(*loaded(), open_records(scenes), out, config, shared_words, small_shards(2))


def killing_parts(scenes: Path, out: Path, kills: Path) -> Any:
    """The same with a sampler that kills its process at a random moment, as long as there were fewer than KILLS."""
    folder, sampler = parts(scenes, out)
    sample = sampler.sample

    def killed(number: int, notify: Callable[..., None]) -> Any:
        done = len(list(kills.iterdir()))
        moment, calls = random.Random(f"{SEED} {done}").randrange(1, 30_000), 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call"
            if calls == moment and done < KILLS:
                (kills / str(done)).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        figures = sample(number, notify)
        sys.setprofile(None)
        return figures

    sampler.sample = killed
    return folder, sampler


def main(folder: Path) -> None:
    import torch
    from helpers.pair_runs import QUICK, contents, loaded, shared_words, small_shards, write_scenes

    from mmbdhs.pairs import sample_dataset
    from mmbdhs.pairs.ray_workers import sample_on_ray
    from mmbdhs.runs import FolderInUseError

    torch.set_num_threads(1)
    scenes = write_scenes(folder / "scenes", 12)
    one, two = folder / "one", folder / "two"
    sample_dataset(*loaded(), scenes, one, QUICK, shared_words, small_shards(2), progress=False)
    kills = folder / "kills"
    kills.mkdir()
    held, _ = parts(scenes, two)
    result = sample_on_ray(held, partial(killing_parts, scenes, two, kills), 2, "local", 2, progress=False)
    before, after = contents(one), contents(two)
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    shards = len(list((two / "data").iterdir()))
    report = {"kills": len(list(kills.iterdir())), "shards": shards, "missing": result.missing}
    (two / "data/train-00003.parquet").unlink()
    with pytest.raises(FolderInUseError) as error:
        sample_on_ray(held, partial(parts, scenes, two, seed=1), 2, "local", 1, progress=False)
    print(json.dumps(report | {"differences": different, "error of other settings": str(error.value)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
