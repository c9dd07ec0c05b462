"""Preference records of the miniature's world, and a copy of its model to train."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmbdhs import miniature
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.training import TrainConfig


@cache
def _loaded() -> tuple[Any, Any]:
    return miniature.load()


def fresh_miniature() -> tuple[Any, Any]:
    """A copy of the shipped model that a test may change, and its processor."""
    model, processor = _loaded()
    return copy.deepcopy(model), processor


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """‖found − expected‖ / ‖expected − start‖: the error as a share of the distance that training moved the weights.

    Adam divides gradients by their size, so single weights whose gradient is only rounding may move either way.
    """
    assert found.keys() == expected.keys() == start.keys()

    def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([(one[name] - other[name]).double().norm() for name in one]).norm()

    return float(distance(found, expected) / distance(expected, start))


def full_run(output: Path | str, **settings: Any) -> TrainConfig:
    """The settings of one epoch in which the whole text decoder is trained, in steps of four examples."""
    return TrainConfig(output, **{"lora_r": 0, "num_train_epochs": 1, "gradient_accumulation_steps": 1} | settings)


def scene_records(count: int) -> list[dict[str, Any]]:
    """Pictures with their own captions as chosen responses and the captions of other pictures as rejected ones."""
    return [_record(number) for number in range(count)]


def _record(number: int) -> dict[str, Any]:
    scene, other = make_scene("balanced", number), make_scene("balanced", number + 1000)
    return {
        "images": [render(scene)],
        "prompt": CAPTION_PROMPT,
        "chosen": caption(scene),
        "rejected": caption(other),
        "key": f"scene-{number}",
    }
