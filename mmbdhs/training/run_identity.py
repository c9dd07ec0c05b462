"""What a training run is: everything that its results depend on, as a JSON-ready record without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from mmbdhs.data import data_fingerprint
from mmbdhs.runs import describe, installed_versions, model_fingerprint
from mmbdhs.training.config import TrainConfig

_PACKAGES = ("mmbdhs", "torch", "transformers", "accelerate", "peft")
# Settings that change neither weights nor samples by more than rounding.
_WITHOUT_EFFECT = {"output", "resume", "save_steps", "keep_checkpoints", "eval_steps", "log_steps", "on_error"}
_WITHOUT_EFFECT |= {"micro_batch_size", "gradient_checkpointing", "shard"}
# Settings of the run's length, which may change: a run may be continued beyond its first end.
LENGTH = {"epochs", "max_steps"}


def run_identity(
    model: nn.Module,
    reference: nn.Module | None,
    records: Sequence[Mapping[str, Any]],
    source: Any,
    objective: Any,
    config: TrainConfig,
) -> dict[str, Any]:
    """The identity of a run, before the model is changed for training.

    Models count by their parameters' names, shapes, dtypes and a few values of each; records by their text, keys and
    image paths, or by the fingerprint of `Records` or a `datasets.Dataset`.
    """
    settings = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in _WITHOUT_EFFECT}
    return {
        "source": describe(source),
        "objective": describe(objective),
        "config": describe(settings),
        "data": data_fingerprint(records),
        "model": model_fingerprint(model),
        "reference": None if reference is None else model_fingerprint(reference),
        "versions": installed_versions(*_PACKAGES),
    }
