"""Objectives: functions from the log-probabilities of an example's responses to its loss.

An objective is any callable with the signature of `Objective`. With an attribute `needs_reference = False`, no
reference is computed for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmbdhs.checks import at_least_zero
from mmbdhs.logprobs import ResponseLogps
from mmbdhs.losses import PreferenceLoss, averaged_loss, sft_loss

_LENGTHS = ("chosen_lengths", "rejected_lengths")


class Objective(Protocol):
    """The losses and rewards of B examples with N responses each.

    policy: log-probabilities of the responses under the policy, the chosen response first.
    reference: float [B, N], log-probability of each response under the reference in nats; None if `needs_reference` is
        False.

    Rewards that do not exist are NaN.
    """

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss: ...


def needs_reference(objective: Objective) -> bool:
    """Whether an objective reads the reference. An objective that does not say so does."""
    return getattr(objective, "needs_reference", True)


@dataclass(frozen=True)
class _Pairwise:
    loss: Callable[..., PreferenceLoss]
    weights: tuple[float, ...] | None
    lengths: tuple[str, ...]
    needs_reference: bool
    sft_weight: float
    settings: dict[str, Any]

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        rejected = range(1, policy.sums.shape[1])
        if not rejected:
            raise ValueError("objective: needs two responses or more of each example, the source gives one")
        weights = self.weights or [1 / len(rejected) for _ in rejected]
        result = averaged_loss([self._compare(column, policy, reference) for column in rejected], weights=weights)
        if not self.sft_weight:
            return result
        likelihood = sft_loss(policy.sums[:, 0], chosen_lengths=policy.lengths[:, 0])
        return result._replace(losses=result.losses + self.sft_weight * likelihood)

    def _compare(self, rejected: int, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        """The loss of response 0 against response `rejected`."""
        sums = [policy.sums] if reference is None else [policy.sums, reference]
        vectors = [logps[:, column] for logps in sums for column in (0, rejected)]
        lengths = dict(zip(_LENGTHS, (policy.lengths[:, 0], policy.lengths[:, rejected]), strict=True))
        return self.loss(*vectors, **{name: lengths[name] for name in self.lengths}, **self.settings)


def pairwise(
    loss: Callable[..., PreferenceLoss],
    weights: Sequence[float] | None = None,
    *,
    per_token: bool = False,
    sft_weight: float = 0.0,
    **settings: Any,
) -> Objective:
    """A pairwise loss of `mmbdhs.losses`, averaged over pairs of the chosen and each other response (Eq. 5).

    loss: takes log-probabilities of chosen and rejected responses.
    weights: of the pairs, with sum 1; None for equal weights.
    per_token: whether to pass lengths to a loss for which they are optional, which makes IPO length-normalised. A loss
        that requires lengths always gets them.
    sft_weight: of the negative log-likelihood per token of the chosen response, which is added to the loss as in RPO
        (arXiv 2404.19733); TRL's rpo_alpha.
    settings: further arguments of the loss.

    Raises TypeError for settings that the loss does not take, and ValueError for per_token where it takes no lengths.
    """
    at_least_zero(sft_weight=sft_weight)
    signature = inspect.signature(loss)
    signature.bind_partial(**settings)
    taken = {name: signature.parameters[name] for name in _LENGTHS if name in signature.parameters}
    if per_token and not taken:
        raise ValueError(f"per_token: needs a loss that takes lengths, got {loss.__name__}")
    lengths = tuple(name for name, parameter in taken.items() if per_token or parameter.default is parameter.empty)
    needs_reference = "reference_chosen_logps" in signature.parameters
    return _Pairwise(loss, None if weights is None else tuple(weights), lengths, needs_reference, sft_weight, settings)


@dataclass(frozen=True)
class _Supervised:
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        losses = sft_loss(policy.sums[:, 0], chosen_lengths=policy.lengths[:, 0])
        no_rewards = torch.full_like(losses, torch.nan).detach()
        return PreferenceLoss(losses, no_rewards, no_rewards)


def supervised() -> Objective:
    """The negative log-probability per token of the chosen response. All examples weigh the same; there are no
    rewards."""
    return _Supervised()
