"""Losses that combine other losses (Eq. 4-5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmbdhs import checks
from mmbdhs.losses.pairs import PreferenceLoss


def averaged_loss(losses: Sequence[PreferenceLoss], *, weights: Sequence[float]) -> PreferenceLoss:
    """The weighted mean Σ wᵢ Lᵢ of losses and of rewards: Eq. 5 of arXiv 2407.02477 for any pairwise loss.

    losses: [B] each, of the same examples, each against another rejected response; any number from 1.
    weights: one number wᵢ of at least 0 for each loss, with sum 1; (γ, 1 − γ) is Eq. 5.
    """
    losses, weights = list(losses), list(weights)
    if not losses:
        raise ValueError("losses: needs at least one, got none")
    _are_losses(**{f"losses[{i}]": loss for i, loss in enumerate(losses)})
    if len(weights) != len(losses):
        raise ValueError(f"weights: needs one for each of the losses, got {len(weights)} for {len(losses)}")
    checks.at_least_zero(**{f"weights[{i}]": weight for i, weight in enumerate(weights)})
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights: needs a sum of 1, got {weights} with sum {sum(weights)}")
    fields = (sum(w * field for w, field in zip(weights, each, strict=True)) for each in zip(*losses, strict=True))
    return PreferenceLoss(*fields)


def mixed_loss(first: PreferenceLoss, second: PreferenceLoss, *, draws: Tensor) -> PreferenceLoss:
    """Mixed-DPO, α L(y₊, y₋) + (1 − α) L(ỹ₊, ỹ₋): Eq. 4 of arXiv 2407.02477.

    The loss of a pair that is not drawn has no gradient, so its forward pass can be saved by choosing pairs beforehand.

    first: [B], the loss of the pairs from the data set.
    second: [B], the loss of the pairs sampled from the policy.
    draws: α, [B], bool or the numbers 0 and 1: each example's Bernoulli(p) draw, torch.rand(B) < p.
    """
    _are_losses(first=first, second=second)
    checks.same_shape({"first.losses": first.losses, "second.losses": second.losses, "draws": draws}, dims=1)
    checks.require(checks.Rule("draws", "0 and 1 only", draws, (draws == 0) | (draws == 1)))
    taken = draws.bool()
    return PreferenceLoss(*(torch.where(taken, one, two) for one, two in zip(first, second, strict=True)))


def _are_losses(**losses: PreferenceLoss) -> None:
    for name, loss in losses.items():
        if not isinstance(loss, PreferenceLoss):
            raise TypeError(f"{name}: needs a PreferenceLoss, got {type(loss).__name__}")
    checks.same_shape({f"{name}.losses": loss.losses for name, loss in losses.items()})
