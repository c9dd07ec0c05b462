"""A training run that is killed at any moment ends as one that was never disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

KILLS, SEED = {"dpo": 20, "rloo": 10, "ppo": 10}, 0


@pytest.mark.slow
@pytest.mark.parametrize("method", KILLS)
def test_kills_at_random_moments_change_nothing(method: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, __file__, tmp_path, method], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS[method] and report["runs"] >= 2
    assert report["differences"] == []


def main(folder: Path, method: str) -> None:
    """Kill runs until there were enough kills, and compare each finished run with an undisturbed one."""
    from helpers.kills import kill_runs

    print(json.dumps(kill_runs(folder, partial(run, method), compared, KILLS[method], SEED)))


def parts(method: str) -> tuple[Any, Any]:
    """Source and objective."""
    from mmbdhs.losses import dpo_loss
    from mmbdhs.sampling import SamplingConfig
    from mmbdhs.training import RolloutSource, StoredSource, pairwise, ppo, rloo

    if method == "dpo":
        return StoredSource(), pairwise(dpo_loss, beta=0.1)
    source = RolloutSource(length_rewards, num_generations=2, sampling=SamplingConfig(max_new_tokens=4))
    return source, rloo() if method == "rloo" else ppo(num_ppo_epochs=2)


def length_rewards(rollouts: Sequence[Any]) -> list[list[float]]:
    return [[float(len(text)) for text in one.responses] for one in rollouts]


def run(method: str, output: Path) -> None:
    """Train, or continue a run."""
    import torch
    from helpers.preference_records import fresh_miniature, scene_records

    from mmbdhs.training import TrainConfig, train

    torch.set_num_threads(1)
    config = TrainConfig(
        output,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        save_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        lora_r=2,
        resume_from_checkpoint=True,
    )
    train(*fresh_miniature(), scene_records(4), *parts(method), config)


def compared(whole: Path, cut: Path) -> list[str]:
    """What differs between two finished runs: weights to the bit, the log apart from speed, and files left over."""
    found = []
    for name in ("final/adapter_model.safetensors", "checkpoint-4/adapter_model.safetensors"):
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

    main(Path(sys.argv[1]), sys.argv[2])
