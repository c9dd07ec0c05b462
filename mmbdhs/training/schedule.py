"""Learning rates: the schedules of transformers, and how far they can move adapters."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

_LOG = logging.getLogger("mmbdhs")

SCHEDULES = tuple(kind.value for kind in SchedulerType if kind.value not in ("reduce_lr_on_plateau", "greedy"))
"""The schedules of transformers in which a rate depends on the number of the step alone."""

_LEAST_CHANGE = 1e-3  # of the adapted weights, below which a run is thought to be a mistake


def rate_factors(
    name: str, warmup_steps: float, total: int, settings: Mapping[str, Any] | None = None
) -> Callable[[int], float]:
    """A function from the number of an optimiser step, counted from 0, to the factor of the learning rates in it.

    name: one of SCHEDULES.
    warmup_steps: steps of the linear warm-up; below 1, their share of all steps.
    total: number of optimiser steps.
    settings: further arguments of the schedule.

    Raises TypeError or ValueError for settings that the schedule does not take or lacks.
    """
    warm = math.ceil(warmup_steps * total) if warmup_steps < 1 else int(warmup_steps)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule: Any = get_scheduler(name, optimizer, warm, total, cast("Any", settings))
    return schedule.lr_lambdas[0]


def warn_of_small_rates(model: nn.Module, learning_rate: float, factors: Callable[[int], float], steps: int) -> None:
    """Log a warning if the learning rate cannot visibly change the weights that have new adapters.

    An adapter adds scale · B · A to a weight W. B begins at 0, and a step of Adam moves each of its entries by at most
    about the learning rate. If all moved that far, in random directions, they would be b = rate · Σ factors, and the
    change of W by its own size would be scale · b · √rows · ‖A‖ / ‖W‖.
    """
    layer: Any = next((one for one in model.modules() if getattr(one, "lora_A", None)), None)
    weight = None if layer is None else layer.get_base_layer().weight
    if weight is None or not weight.is_floating_point() or weight.device.type == "meta":
        return
    name = next(iter(layer.lora_A))
    if bool(layer.lora_B[name].weight.any()):  # adapters that are trained further
        return
    entry = learning_rate * sum(map(factors, range(steps)))
    size = float(layer.lora_A[name].weight.detach().float().norm() / weight.detach().float().norm())
    change = layer.scaling[name] * entry * math.sqrt(weight.shape[0]) * size
    if change < _LEAST_CHANGE:
        _LOG.warning(
            "learning_rate: %g can change the adapted weights by at most about %.2g%% in %d steps. Rates of 1e-5 to "
            "2e-4 are usual for LoRA",
            learning_rate,
            100 * change,
            steps,
        )
