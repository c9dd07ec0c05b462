"""The result of pairwise losses, and the functions that they share."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks


class PreferenceLoss(NamedTuple):
    """What pairwise losses return.

    losses: [B], not reduced.
    chosen_rewards, rejected_rewards: [B], detached, for accuracies and margins.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def preference(losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> PreferenceLoss:
    """The result, with detached rewards."""
    return PreferenceLoss(losses, chosen_rewards.detach(), rejected_rewards.detach())


def logistic(margins: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The logistic loss −(1 − ε) log σ(m) − ε log σ(−m) of labels that are flipped with probability ε."""
    checks.below_half(label_smoothing)
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def per_token(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Sums as means per token; without lengths the values themselves."""
    return values if lengths is None else values / lengths
