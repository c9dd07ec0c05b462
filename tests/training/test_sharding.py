"""Sharded training against training with the whole model. The file is also the program that trains sharded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records
from safetensors.torch import load_file

from mmbdhs import BDHSConfig, miniature, train
from mmbdhs.losses import dpo_loss, mdpo_loss
from mmbdhs.sampling.config import SamplingConfig
from mmbdhs.training.objectives import pairwise
from mmbdhs.training.pair_sources import (
    Candidates,
    DistortedSource,
    MixedSource,
    OnlineBDHSSource,
    StoredSource,
    TrainingExample,
)
from mmbdhs.training.reinforcement import ppo, rloo
from mmbdhs.training.reward_model import reward_modelling
from mmbdhs.training.rollouts import RolloutSource
from mmbdhs.vlm import VLM

pytest.importorskip("accelerate")
pytest.importorskip("peft")

DPO = pairwise(dpo_loss, beta=0.1)
FULL = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 6,
    "num_train_epochs": 2,
    "save_steps": 1,
    "save_total_limit": 9,
    "lr_scheduler_type": "constant",  # the rates of a run that is cut by max_steps are those of the whole run
}
ADAPTERS = {
    "lora_r": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "eval_steps": 1,
}


def uneven(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates | None]:
    """Two of five are undecided and one has a third response, so processes need different numbers of passes."""

    def candidates(example: TrainingExample) -> Candidates | None:
        kind, texts = int(example.key.split("-")[1]) % 5, (example.record["chosen"], example.record["rejected"])
        return None if kind < 2 else Candidates((*texts, *["The bed is red."] * (kind == 2)))

    return [candidates(example) for example in examples]


def train_full(output: Path, **settings: Any) -> Any:
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **FULL | settings)
    return train(*fresh_miniature(), scene_records(9), uneven, DPO, config)


def train_adapters(output: Path, **settings: Any) -> Any:
    def weights(model: Any, step: int) -> dict[str, float]:
        return {"size": sum(parameter.numel() for parameter in VLM.of(model).model.parameters())}

    source = OnlineBDHSSource(BDHSConfig(max_iterations=1), lambda a, b: [0.0] * len(a), with_stored=True)
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **ADAPTERS | settings)
    objective = pairwise(dpo_loss, weights=(0.5, 0.5), beta=0.1)
    return train(*fresh_miniature(), scene_records(5), source, objective, config, evaluate=weights)


def train_distorted(output: Path, **settings: Any) -> Any:
    """Predictions over noisy images take more passes, and are made for some of the examples only."""
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **FULL | settings)
    source = MixedSource(DistortedSource(), StoredSource(), p=0.4)
    return train(*fresh_miniature(), scene_records(9), source, DPO, config)


def train_over_both_images(output: Path, **settings: Any) -> Any:
    """Distorted images run together with the clean ones."""
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **FULL | settings)
    return train(*fresh_miniature(), scene_records(9), DistortedSource(), pairwise(mdpo_loss, beta=0.1), config)


def train_streamed(output: Path, **settings: Any) -> Any:
    """Records in their own order, two of which cannot be used, in an epoch and a half."""

    class Stream:
        def __iter__(self) -> Any:
            return iter([*scene_records(4), "bad", *scene_records(9)[4:], {"images": []}])

    config = full_run(output, learning_rate=1e-3, logging_steps=1, on_error="skip", **FULL | settings)
    return train(*fresh_miniature(), Stream(), StoredSource(), DPO, config)


def length_rewards(rollouts: Sequence[Any]) -> list[list[float]]:
    return [[float(len(text)) for text in one.responses] for one in rollouts]


def train_rewarded(output: Path, objective: Any, **settings: Any) -> Any:
    """In the second step one process has an example and the other has none."""
    counts = {"gradient_accumulation_steps": 4, "max_steps": 2}
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **FULL | counts | settings)
    source = RolloutSource(length_rewards, num_generations=3, sampling=SamplingConfig(max_new_tokens=12))
    return train(*fresh_miniature(), scene_records(5), source, objective, config)


def train_reward_model(output: Path, **settings: Any) -> Any:
    config = full_run(output, learning_rate=1e-3, logging_steps=1, **FULL | settings)
    return train(*fresh_miniature(), scene_records(9), uneven, reward_modelling(), config)


def main(output: Path) -> None:
    """Train sharded; this runs in each of the processes."""
    # Half of the forward passes of one process.
    halves = {"shard": True, "gradient_accumulation_steps": 3}
    result = train_full(output / "full", **halves)
    parameters = list(result.model.parameters())
    held, whole = sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)
    assert held < 0.51 * whole, f"{held} of {whole}"
    assert all(p.grad is None for p in parameters)
    train_full(output / "cut", max_steps=2, **halves)
    train_full(output / "cut", resume_from_checkpoint=True, **halves)
    train_adapters(output / "adapters", shard=True, gradient_accumulation_steps=1)
    train_distorted(output / "distorted", **halves)
    train_over_both_images(output / "both", **halves)
    train_streamed(output / "streamed", max_steps=3, **halves)
    train_reward_model(output / "reward", **halves)
    train_rewarded(output / "rloo", rloo(), shard=True, gradient_accumulation_steps=2)
    train_rewarded(output / "ppo", ppo(), gradient_accumulation_steps=2)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Without the timeout, processes that wait for each other in vain would do so for half an hour.
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    subprocess.run([*launcher, __file__, str(folder)], check=True, env=environment, timeout=300)
    return folder


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row[name] for row in lines for name in ("loss", "rewards/margins", "grad_norm") if name in row]


def rewards(folder: Path) -> list[float]:
    """What a run of reinforcement learning logs, but for the loss, which is 0 apart from rounding."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    names = ("reward", "entropy", "completions/mean_length", "grad_norm")
    return [row[name] for row in lines for name in names if name in row]


def test_a_sharded_model_trains_as_a_whole_one(sharded: Path, tmp_path: Path) -> None:
    train_full(tmp_path / "full")
    found, expected = (load_file(folder / "full/final/model.safetensors") for folder in (sharded, tmp_path))
    start = load_file(miniature.path() / "model.safetensors")
    assert apart(found, expected, start) < 1e-3
    assert losses(sharded / "full") == pytest.approx(losses(tmp_path / "full"), rel=1e-4)


def test_a_sharded_run_resumes_sharded_to_the_bit_or_whole(sharded: Path, tmp_path: Path) -> None:
    expected = load_file(sharded / "full/final/model.safetensors")
    found = load_file(sharded / "cut/final/model.safetensors")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    shutil.copytree(sharded / "full/checkpoint-2", tmp_path / "checkpoint-2")
    train_full(tmp_path, resume_from_checkpoint=True)
    start = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert apart(load_file(tmp_path / "final/model.safetensors"), expected, start) < 1e-3


def test_adapters_and_online_samples_are_those_of_a_whole_model(sharded: Path, tmp_path: Path) -> None:
    train_adapters(tmp_path / "adapters")
    found, expected = (load_file(at / "adapters/final/adapter_model.safetensors") for at in (sharded, tmp_path))
    learned = [name for name in expected if "lora_B" in name]  # from zeros
    assert apart(found, expected, expected | {name: 0 * expected[name] for name in learned}) < 1e-3
    assert losses(sharded / "adapters") == pytest.approx(losses(tmp_path / "adapters"), rel=1e-4)


def test_predictions_of_a_sharded_model_are_those_of_a_whole_one(sharded: Path, tmp_path: Path) -> None:
    train_distorted(tmp_path / "distorted")
    assert losses(sharded / "distorted") == pytest.approx(losses(tmp_path / "distorted"), rel=1e-4)


def test_both_images_of_a_sharded_model_are_scored_as_those_of_a_whole_one(sharded: Path, tmp_path: Path) -> None:
    train_over_both_images(tmp_path / "both")
    assert losses(sharded / "both") == pytest.approx(losses(tmp_path / "both"), rel=1e-4)


def test_a_sharded_reward_model_and_its_head_are_those_of_a_whole_one(sharded: Path, tmp_path: Path) -> None:
    train_reward_model(tmp_path / "reward")
    assert losses(sharded / "reward") == pytest.approx(losses(tmp_path / "reward"), rel=1e-4)
    start = load_file(tmp_path / "reward/checkpoint-1/reward_head.safetensors")
    found, expected = (load_file(at / "reward/final/reward_head.safetensors") for at in (sharded, tmp_path))
    assert apart(found, expected, start) < 1e-2


@pytest.mark.parametrize(("name", "objective"), [("rloo", rloo()), ("ppo", ppo())])
def test_two_processes_learn_from_rewards_as_one_does(name: str, objective: Any, sharded: Path, tmp_path: Path) -> None:
    train_rewarded(tmp_path / name, objective)
    assert rewards(sharded / name) == pytest.approx(rewards(tmp_path / name), rel=1e-3)
    start = load_file(miniature.path() / "model.safetensors")
    found, expected = (load_file(at / name / "final/model.safetensors") for at in (sharded, tmp_path))
    assert apart(found, expected, start) < 1e-2


def test_ppo_is_not_sharded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard: needs False for _PPO"):
        train_rewarded(tmp_path, ppo(), shard=True)


def test_one_process_has_nothing_to_share_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard: needs several processes, got one"):
        train_full(tmp_path, shard=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_processes_share_a_stream(sharded: Path, tmp_path: Path) -> None:
    train_streamed(tmp_path / "streamed", max_steps=3)
    assert losses(sharded / "streamed") == pytest.approx(losses(tmp_path / "streamed"), rel=1e-4)
