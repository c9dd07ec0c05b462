"""The parts of a run, ready for its devices: the Accelerator, and a learner around the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from mmbdhs.training.batches import Batches
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.heads import add_head
from mmbdhs.training.learner import Learner, make_dummy_example
from mmbdhs.training.objectives import (
    AnyObjective,
    has_own_forward,
    needs_reference,
    takes_stored_reference,
)
from mmbdhs.training.pair_sources import PairSource
from mmbdhs.training.sharding import ReplicatedModel, ShardedModel
from mmbdhs.training.trainable import make_trainable, trained_parameters
from mmbdhs.vlm import Processor

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOG = logging.getLogger("mmbdhs")


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run. Raises ValueError for launchers, trackers and settings that do not fit."""
    try:
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import ProjectConfiguration
    except ImportError as error:
        raise ImportError("train: needs the extra 'train': pip install 'mmbdhs[train]'") from error
    installed = [str(kind) for kind in get_available_trackers()]
    if unknown := [name for name in config.report_to if name not in (*installed, "all")]:
        raise ValueError(
            f"report_to: needs trackers of Accelerate that are installed ({', '.join(installed) or 'none is'}), got "
            f"{unknown[0]!r}"
        )
    folder = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        # Without it, Accelerate takes each process on a machine without accelerators for the only one.
        cpu=not torch.accelerator.is_available(),
        log_with=config.report_to or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "runs")),
    )
    accelerator.gradient_accumulation_steps = 1  # the trainer counts micro-batches, whatever the launcher was told
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerate: needs a launcher that starts processes with the whole model each, got {kind}. "
            "To shard the model, set `shard` of TrainConfig"
        )
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("shard: needs several processes, got one. Start them with accelerate launch or torchrun")
    return accelerator


def make_learner(
    accelerator: Accelerator,
    model: nn.Module,
    processor: Processor,
    batches: Batches,
    source: PairSource,
    objective: AnyObjective,
    config: TrainConfig,
    reference: nn.Module | None,
) -> Learner:
    """The learner of a run, with the model prepared for training and placed on the devices."""
    if next(model.parameters()).device != accelerator.device:
        model.to(accelerator.device)
    model = make_trainable(model, config)
    all_stored = takes_stored_reference(objective) and _all_stored(source, batches)
    if reference is None and needs_reference(objective) and not all_stored and not hasattr(model, "disable_adapter"):
        reference = _frozen_copy(model)
    if has_own_forward(objective) and objective.head:
        add_head(model, objective.head, config.seed)
    learner = Learner(
        policy=ReplicatedModel(model),
        processor=processor,
        source=source,
        objective=objective,
        reference=None if reference is None else ReplicatedModel(reference),
        config=config,
        autocast=accelerator.autocast,
        backward=accelerator.backward,
    )
    return _distributed(learner, all_stored, batches.records()) if accelerator.num_processes > 1 else learner


def _all_stored(source: PairSource, batches: Batches) -> bool:
    """Whether the source passes on the reference's log-probabilities and all records are known to have them."""
    return getattr(source, "stored_reference", False) and batches.all_have("reference_logps")


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Deep-copy the trained parameters as a frozen reference, which shares the frozen parameters with the model."""
    _LOG.info("keeping a frozen copy of the model as the reference")
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _distributed(learner: Learner, all_stored: bool, records: Iterable[Mapping[str, Any]]) -> Learner:
    """The learner with rank 0's trained parameters on all processes, and sharded if its config says so."""
    for parameter in trained_parameters(learner.policy.model).values():
        distributed.broadcast(parameter.detach(), src=0)  # the initial adapters may differ between ranks
    if not learner.config.shard:
        return learner
    models = [one.model for one in (learner.policy, learner.reference) if one]
    dummy = make_dummy_example(models, learner.processor, records)
    dummy = dummy._replace(reference_logps=(0.0,) if all_stored else None)
    policy = ShardedModel(learner.policy.model)
    reference = learner.reference and ShardedModel(learner.reference.model)
    return replace(learner, policy=policy, reference=reference, stored_reference=all_stored, dummy_example=dummy)
