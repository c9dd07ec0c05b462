"""Settings are checked, and rates follow their schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from mmbdhs.training.config import TrainConfig
from mmbdhs.training.trainer import rate_factor


def test_settings_come_from_a_mapping() -> None:
    assert TrainConfig.from_dict({"output": "x", "epochs": 3}) == TrainConfig("x", epochs=3)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="config: 'learning_rat' is unknown; is it 'learning_rate'"):
        TrainConfig.from_dict({"output": "x", "learning_rat": 1})


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"batch_size": 0}, "batch_size: needs an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs: needs an integer of at least 1, got 1.5"),
        ({"seed": True}, "seed: needs an integer of at least 0, got True"),
        ({"learning_rate": -1.0}, "learning_rate: needs a finite number of at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate: needs a finite number of at least 0, got nan"),
        ({"warmup_ratio": 2}, r"warmup_ratio: needs a number in \[0, 1\], got 2"),
        ({"schedule": "cosinus"}, "schedule: needs one of 'cosine', 'linear', 'constant', got 'cosinus'"),
        ({"resume": "yes"}, "resume: needs one of True, False, got 'yes'"),
        ({"shard": True, "mixed_precision": "fp16"}, "mixed_precision: needs 'no' or 'bf16' with shard, got 'fp16'"),
        ({"max_steps": 0}, "max_steps: needs an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig("x", **setting)


def test_the_output_is_a_path() -> None:
    with pytest.raises(TypeError, match="output: needs a path, got 3"):
        TrainConfig(3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_after_the_warm_up_rates_are_those_of_transformers(schedule: str) -> None:
    steps, warm = 40, 4
    name = "constant_with_warmup" if schedule == "constant" else schedule
    peer = get_scheduler(name, torch.optim.SGD([torch.zeros(1)], lr=1.0), warm, steps)
    expected = []
    for _ in range(steps):
        expected.append(peer.get_last_lr()[0])
        peer.optimizer.step()
        peer.step()
    config = TrainConfig("x", schedule=schedule, warmup_ratio=0.1)
    found = [rate_factor(step, steps, config) for step in range(steps)]
    assert found[warm:] == pytest.approx(expected[warm:])
    assert found[:warm] == [0.25, 0.5, 0.75, 1.0]  # unlike in transformers, the first step has a rate above 0


def test_the_defaults_are_the_papers() -> None:
    """The appendix on training of arXiv 2407.02477: LoRA of rank 128 and scaling 256, and from its grids three epochs
    of batches of 16 at 1e-6."""
    config = TrainConfig("x")
    assert (config.lora_rank, config.lora_alpha or 2 * config.lora_rank) == (128, 256)
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 16, 1e-6)
