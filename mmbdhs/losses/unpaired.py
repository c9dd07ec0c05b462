"""The loss of single responses that are labelled good or bad."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmbdhs import checks


class UnpairedLoss(NamedTuple):
    """Losses and rewards of B responses.

    losses: [B], not reduced.
    rewards: [B], detached.
    """

    losses: Tensor
    rewards: Tensor


def kto_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    desirable: Tensor,
    *,
    reference_point: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """KTO, λ_D σ(β z₀ − r) for desirable responses and λ_U σ(r − β z₀) for others, with r = β log π(y)/π_ref(y).

    The paper (arXiv 2402.01306) writes the same as λ_D (1 − σ(r − β z₀)) and λ_U (1 − σ(β z₀ − r)).

    policy_logps, reference_logps: float [B], summed over the tokens of the response.
    desirable: bool [B].
    reference_point: z₀ in nats, a scalar float tensor, as kto_reference_point estimates it; it gets no gradient.
    beta: β, above 0.
    desirable_weight, undesirable_weight: λ_D and λ_U, above 0; the paper keeps λ_D n_D / (λ_U n_U) in [1, 1.33].
    """
    checks.above_zero(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    checks.same_shape({"policy_logps": policy_logps, "desirable": desirable}, dims=1)
    checks.boolean("desirable", desirable)
    checks.same_shape({"reference_point": reference_point}, dims=0)
    policy, reference, point = checks.sequences(
        {
            "policy_logps": policy_logps,
            "reference_logps": reference_logps,
            "reference_point": reference_point.to(policy_logps.device).expand(policy_logps.shape),
        }
    )
    rewards = beta * (policy - reference)
    gain = rewards - beta * point.detach()
    good, bad = desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    return UnpairedLoss(torch.where(desirable, good, bad), rewards.detach())


def kto_reference_point(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """KTO's estimate of KL(π ‖ π_ref), max(0, mean log π(y′)/π_ref(y′)), a detached scalar.

    The paper's code and TRL take the mean over all processes before the maximum; with several processes, average the
    log-ratios across them first.

    policy_logps, reference_logps: float [B], B ≥ 1, of mismatched responses y′: each answers another prompt of the
        batch.
    """
    policy, reference = checks.sequences({"policy_logps": policy_logps, "reference_logps": reference_logps})
    if not len(policy):
        raise ValueError("policy_logps: needs at least one mismatched response, got none")
    return (policy - reference).mean().clamp(min=0).detach()
