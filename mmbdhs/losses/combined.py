"""Losses that combine other losses (Eq. 4-5), and log-probabilities that give changed tokens more weight."""

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


def ddpo_logps(
    token_logps: Tensor,
    response_mask: Tensor,
    changed_mask: Tensor,
    *,
    gamma: float = 5.0,
    normalize: bool = True,
) -> Tensor:
    """Log-probabilities of dense DPO, (Σ_same log p + γ Σ_changed log p) / N, [B] (RLHF-V, arXiv 2312.00849).

    They are passed to dpo_loss instead of sums.

    token_logps: float [B, T], of each token given the tokens before it.
    response_mask: bool [B, T], True for tokens of the response, at least one in each row; other entries of token_logps
        are not read.
    changed_mask: bool [B, T], True for tokens of the response that the other response of the pair does not share.
    gamma: γ, above 0; 5 in the paper.
    normalize: True for N = n_same + γ n_changed as in the paper, False for N = 1, the authors' default (their
        dpo_use_average).
    """
    checks.above_zero(gamma=gamma)
    checks.same_shape(
        {"token_logps": token_logps, "response_mask": response_mask, "changed_mask": changed_mask}, dims=2
    )
    checks.boolean("response_mask", response_mask)
    checks.boolean("changed_mask", changed_mask)
    (token_logps,) = checks.widened({"token_logps": token_logps.masked_fill(~response_mask, 0.0)})
    inside = changed_mask <= response_mask
    checks.require(
        *checks.finite({"token_logps": token_logps}),
        checks.Rule("changed_mask", "tokens of the response only", changed_mask, inside),
        *checks.positive({"response_mask.sum(dim=1)": response_mask.sum(dim=1)}),
    )
    weights = response_mask.to(token_logps.dtype)
    weights = torch.where(changed_mask, gamma * weights, weights)
    total = (weights * token_logps).sum(dim=1)
    return total / weights.sum(dim=1) if normalize else total


def _are_losses(**losses: PreferenceLoss) -> None:
    for name, loss in losses.items():
        if not isinstance(loss, PreferenceLoss):
            raise TypeError(f"{name}: needs a PreferenceLoss, got {type(loss).__name__}")
    checks.same_shape({f"{name}.losses": loss.losses for name, loss in losses.items()})
