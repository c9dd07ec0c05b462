"""The result of pairwise losses, and the functions that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

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


def rewards_of(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The rewards r₊ and r₋, [B] each."""
    checks.above_zero(beta=beta)
    chosen, rejected = log_ratios_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return beta * chosen, beta * rejected


def log_ratios_of(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    lengths: dict[str, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """log π(y)/π_ref(y) of the chosen and the rejected response."""
    vectors = named_vectors(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = checks.sequences(vectors, lengths)
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def named_vectors(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> dict[str, Tensor]:
    """The four vectors by the arguments' names."""
    return {
        "policy_chosen_logps": policy_chosen,
        "policy_rejected_logps": policy_rejected,
        "reference_chosen_logps": reference_chosen,
        "reference_rejected_logps": reference_rejected,
    }


class LossOfRewards(Protocol):
    """A preference loss that is a function of the two rewards and has no settings but β."""

    __name__: str

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *,
        beta: float = 0.1,
    ) -> PreferenceLoss: ...


def of_rewards(losses: Callable[[Tensor, Tensor], Tensor]) -> LossOfRewards:
    """The preference loss from its formula, (r₊ [B], r₋ [B]) -> losses [B]."""

    def loss(
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *,
        beta: float = 0.1,
    ) -> PreferenceLoss:
        chosen, rejected = rewards_of(
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
        )
        return preference(losses(chosen, rejected), chosen, rejected)

    # The name and the documentation are the formula's; the signature is this function's.
    functools.update_wrapper(loss, losses, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    del loss.__wrapped__  # type: ignore[attr-defined]
    return loss
