"""Settings are checked, and rates follow the schedules of transformers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature
from transformers import TrainingArguments, get_scheduler

from mmbdhs.training.config import TrainConfig
from mmbdhs.training.schedule import rate_factors, warn_of_small_rates
from mmbdhs.training.trainable import make_trainable


def test_settings_come_from_a_mapping() -> None:
    assert TrainConfig.from_dict({"output_dir": "x", "seed": 3}) == TrainConfig("x", seed=3)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("save_limit", "save_total_limit"),
        ("lora_rank", "lora_r"),
        ("per_device_batch_size", "per_device_train_batch_size"),
        ("warmup_ratio", "warmup_steps"),
        ("num_epochs", "num_train_epochs"),
    ],
)
def test_an_unknown_setting_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"config: '{name}' is unknown; is it '{nearest}'"):
        TrainConfig.from_dict({"output_dir": "x", name: 1})


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: needs an integer of at least 1, got 0"),
        ({"num_train_epochs": 1.5}, "num_train_epochs: needs an integer of at least 1, got 1.5"),
        ({"seed": True}, "seed: needs an integer of at least 0, got True"),
        ({"learning_rate": -1.0}, "learning_rate: needs a finite number of at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate: needs a finite number of at least 0, got nan"),
        ({"warmup_steps": -1}, "warmup_steps: needs a finite number of at least 0, got -1"),
        ({"lr_scheduler_type": "cosinus"}, "lr_scheduler_type: needs one of 'linear', 'cosine', .* got 'cosinus'"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type: needs one of"),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_kwargs: do not fit warmup_stable_decay: .*num_decay_steps",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pwer": 2}},
            "lr_scheduler_kwargs: do not fit polynomial: .*pwer",
        ),
        ({"resume_from_checkpoint": "yes"}, "resume_from_checkpoint: needs one of True, False, got 'yes'"),
        ({"shard": True, "fp16": True}, "fp16: needs a model that is not sharded"),
        ({"bf16": True, "fp16": True}, "fp16: needs bf16=False, got both"),
        ({"max_steps": 0}, "max_steps: needs an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig("x", **setting)


def test_the_output_is_a_path() -> None:
    with pytest.raises(TypeError, match="output_dir: needs a path, got 3"):
        TrainConfig(3)


def test_names_and_types_are_those_of_trl() -> None:
    """All but the library's own settings can be passed to DPOConfig, and those of adapters to LoraConfig."""
    trl = pytest.importorskip("trl")
    own = {"projector_learning_rate", "shard", "lora_r", "lora_alpha", "lora_dropout", "truncate_responses"}
    own |= {"append_eos", "drop_identical", "drop_garbled", "on_error"}
    taken = {name: value for name, value in vars(TrainConfig("x")).items() if name not in own}
    peer = trl.DPOConfig(**taken | {"use_cpu": True})
    for name in ("num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type", "warmup_steps", "seed"):
        assert getattr(peer, name) == taken[name]
    assert {"report_to", "run_name", "push_to_hub", "hub_model_id"} <= taken.keys()


@pytest.mark.parametrize(("given", "kept"), [("wandb", ["wandb"]), (["none"], []), ("none", []), ((), [])])
def test_trackers_are_a_list(given: Any, kept: list[str]) -> None:
    assert TrainConfig("x", report_to=given).report_to == kept


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 8}),
    ],
)
@pytest.mark.parametrize(("warmup", "warm"), [(0.09, 4), (7, 7), (0, 0)])
def test_rates_are_those_of_transformers(name: str, settings: dict[str, Any], warmup: float, warm: int) -> None:
    steps = 40
    peer = get_scheduler(name, torch.optim.SGD([torch.zeros(1)], lr=1.0), warm, steps, settings)
    expected = []
    for _ in range(steps):
        expected.append(peer.get_last_lr()[0])
        peer.optimizer.step()
        peer.step()
    factor = rate_factors(name, warmup, steps, settings)
    assert [factor(step) for step in range(steps)] == pytest.approx(expected)
    assert TrainingArguments("x", warmup_steps=warmup, use_cpu=True).get_warmup_steps(steps) == warm


def test_the_defaults_are_the_papers() -> None:
    """The appendix on training of arXiv 2407.02477: LoRA of rank 128 and scaling 256, and from its grids three epochs
    of batches of 16 at 1e-6."""
    config = TrainConfig("x")
    assert (config.lora_r, config.lora_alpha or 2 * config.lora_r) == (128, 256)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert (config.num_train_epochs, batch, config.learning_rate) == (3, 16, 1e-6)


@pytest.mark.parametrize(("rate", "steps", "warns"), [(1e-6, 10, True), (1e-4, 200, False), (0.0, 10, True)])
def test_a_rate_that_cannot_move_adapters_is_warned_of(
    rate: float, steps: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_trainable(fresh_miniature()[0], TrainConfig("x", lora_r=8))
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        warn_of_small_rates(model, rate, lambda step: 0.5, steps)
    assert ("learning_rate: " in caplog.text) == warns


def test_the_change_that_is_warned_of_is_the_size_of_b_a(caplog: pytest.LogCaptureFixture) -> None:
    """If each entry of B moved by the same amount in a random direction. The bound is its mean size, so 10% off is
    no surprise for a matrix of this size."""
    model = make_trainable(fresh_miniature()[0], TrainConfig("x", lora_r=8))
    layer = next(one for one in model.modules() if getattr(one, "lora_A", None))
    a, w = layer.lora_A["default"].weight.detach(), layer.get_base_layer().weight.detach()
    signs = torch.randint(0, 2, (w.shape[0], a.shape[0]), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    change = layer.scaling["default"] * float((signs * 1e-6 * 20 * 0.5 @ a).norm() / w.norm())
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        warn_of_small_rates(model, 1e-6, lambda step: 0.5, 20)
    (said,) = (float(word[:-1]) for word in caplog.text.split() if word.endswith("%"))
    assert said == pytest.approx(100 * change, rel=0.1)


def test_adapters_that_are_trained_already_and_whole_models_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    trained = make_trainable(fresh_miniature()[0], TrainConfig("x", lora_r=8))
    next(one for one in trained.modules() if getattr(one, "lora_A", None)).lora_B["default"].weight.data += 1
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        for model in (trained, make_trainable(fresh_miniature()[0], TrainConfig("x", lora_r=0))):
            warn_of_small_rates(model, 1e-9, lambda step: 0.5, 1)
    assert "learning_rate" not in caplog.text
