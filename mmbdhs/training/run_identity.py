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
_WITHOUT_EFFECT = {"output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "eval_steps", "on_error"}
_WITHOUT_EFFECT |= {"logging_steps", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo"}
_WITHOUT_EFFECT |= {
    "dataloader_num_workers",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "shard",
}
# Settings of the run's length, which may change: a run may be continued beyond its first end.
LENGTH = {"num_train_epochs", "max_steps"}


def run_identity(
    model: nn.Module,
    reference: nn.Module | None,
    records: Sequence[Mapping[str, Any]],
    source: Any,
    objective: Any,
    config: TrainConfig,
    batch_size: int,
) -> dict[str, Any]:
    """The identity of a run, before the model is changed for training.

    batch_size: examples per optimiser step, over all processes.

    Models count by their parameters' names, shapes, dtypes and a few values of each; records by their text, keys and
    image paths, or by the fingerprint of `Records` or a `datasets.Dataset`.
    """
    settings = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in _WITHOUT_EFFECT}
    return {
        "source": describe(source),
        "objective": describe(objective),
        "config": describe(settings) | {"batch_size": batch_size},
        "data": data_fingerprint(records),
        "model": model_fingerprint(model),
        "reference": None if reference is None else model_fingerprint(reference),
        "versions": installed_versions(*_PACKAGES),
    }
