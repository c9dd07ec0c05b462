"""A run that is killed at any moment ends as one that was never disturbed.

A moment is a number of Python function calls, so the test does not depend on the clock. The file is also the program
that runs and kills: it forks a process for each attempt, because importing takes longer than the run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

KILLS, SEED = 20, 0


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS and report["runs"] >= 2
    assert report["differences"] == []


def main(folder: Path) -> None:
    """Kill runs until there were KILLS kills, and compare each finished run with an undisturbed one."""
    chance, kills, finished = random.Random(SEED), 0, 0
    calls = undisturbed(folder)
    differences: list[str] = []
    while kills < KILLS or (folder / "cut").exists():
        moment = chance.randrange(calls) if kills < KILLS else 0
        status = in_a_fork(lambda moment=moment: run(folder / "cut", moment))
        if status == -signal.SIGKILL:
            kills += 1
            continue
        assert status == 0, f"a resumed run failed with status {status}"
        finished += 1
        differences += compared(folder / "whole", folder / "cut")
        (folder / "cut").rename(folder / f"finished-{finished}")
    print(json.dumps({"kills": kills, "runs": finished, "differences": differences}))


def undisturbed(folder: Path) -> int:
    """Run once without a kill. Returns how many function calls that took."""

    def counted() -> None:
        (folder / "calls").write_text(str(run(folder / "whole", 0)))

    assert in_a_fork(counted) == 0
    return int((folder / "calls").read_text())


def in_a_fork(work: Callable[[], Any]) -> int:
    """Run the work in a process of its own. Returns its status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def run(output: Path, moment: int) -> int:
    """Train, or continue a run, and kill this process at its function call number `moment`; 0 for never."""
    import torch
    from helpers.preference_records import fresh_miniature, scene_records

    from mmbdhs.losses import dpo_loss
    from mmbdhs.training import StoredSource, TrainConfig, pairwise, train

    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    config = TrainConfig(
        output, epochs=2, batch_size=2, save_steps=1, log_steps=1, learning_rate=1e-3, lora_rank=2, resume=True
    )
    sys.setprofile(count)
    train(*fresh_miniature(), scene_records(4), StoredSource(), pairwise(dpo_loss, beta=0.1), config)
    sys.setprofile(None)
    return calls


def compared(whole: Path, cut: Path) -> list[str]:
    """What differs between two finished runs: weights to the bit, the log apart from speed, and files left over."""
    found = []
    for name in ("final/adapter_model.safetensors", "checkpoint-000004/adapter_model.safetensors"):
        if (whole / name).read_bytes() != (cut / name).read_bytes():
            found.append(f"{cut}: {name}")
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (whole, cut)]
    for row in (*logs[0], *logs[1]):
        row.pop("tokens_per_second")
    if logs[0] != logs[1]:
        found.append(f"{cut}: log.jsonl")
    names = [{path.name for path in folder.iterdir()} for folder in (whole, cut)]
    return found + [f"{cut}: {name}" for name in sorted(names[0] ^ names[1])]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import accelerate  # noqa: F401
    import peft  # noqa: F401

    import mmbdhs.training  # noqa: F401

    main(Path(sys.argv[1]))
