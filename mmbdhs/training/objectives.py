"""Objectives: functions from the log-probabilities of an example's responses to its loss.

An objective is any callable with the signature of `Objective`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from mmbdhs.checks import above_zero, at_least_zero
from mmbdhs.logprobs import ResponseLogps
from mmbdhs.losses import PreferenceLoss, averaged_loss, sft_loss

_LENGTHS = ("chosen_lengths", "rejected_lengths")
_CORRUPTED = ("policy_corrupted_logps", "reference_corrupted_logps")

Ids = Sequence[Sequence[Sequence[int]]]
"""Token ids of the N responses to each of B prompts."""


class Objective(Protocol):
    """The losses and rewards of B examples with N responses each.

    policy: log-probabilities of the responses under the policy, the chosen response first.
    reference: float [B, N], log-probability of each response under the reference in nats; None if `needs_reference` is
        False.

    Rewards that do not exist are NaN.

    An objective may have these attributes:
    needs_reference: False if no reference has to be computed for it.
    needs_tokens: True to be called with the reference's `ResponseLogps` in place of its sums, and with a third
        argument, the token ids of the responses. Where records have sums of the reference, it is run all the same.
    scores_distorted: True if the last column is to be log p of the chosen response over the distorted images that the
        source has to give. Otherwise distorted images are used as `Candidates` says.
    """

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss: ...


class LossWithMetrics(NamedTuple):
    """The losses of B examples, and numbers for the log.

    losses: [B], not reduced.
    metrics: fields of `StepMetrics` -> [B], detached.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


class Rewards(NamedTuple):
    """Rewards of N responses to each of B prompts, float [B, N].

    raw: as they were given.
    learned: what is learned from: the same, or normalised.
    """

    raw: Tensor
    learned: Tensor


class ScoredObjective(Protocol):
    """An objective with a forward pass of its own, in place of the log-probabilities that an `Objective` takes.

    needs_reference: whether it reads the reference.
    needs_rewards: whether the source has to give rewards (`RolloutSource`).
    head: the name of the head that it trains; None for none.
    passes: how many optimiser steps learn from one batch.
    fixed_first: whether `targets` are made for a whole batch before its first pass.
    max_kl: nats per response; a batch that is further from the reference on average ends the run.
    """

    @property
    def needs_reference(self) -> bool: ...

    @property
    def needs_rewards(self) -> bool: ...

    @property
    def head(self) -> str | None: ...

    @property
    def passes(self) -> int: ...

    @property
    def fixed_first(self) -> bool: ...

    @property
    def max_kl(self) -> float: ...

    def forward(self, model: nn.Module, prompts: Sequence[Mapping[str, Any]], ids: Ids) -> Any:
        """What the model says of the responses, with gradients, in one pass. Its `sums` are [B, N]."""

    def targets(self, scores: Any, reference: Any, rewards: Any) -> Any:
        """What the loss compares with, a tree of tensors [B, ...] without gradients.

        scores: from `forward`, by the policy that the responses are of.
        reference: the reference's `ResponseLogps`; None without `needs_reference`.
        rewards: `Rewards`; None where the source gives none.
        """

    def over_batch(self, targets: list[Any], total: Callable[[Tensor], Tensor]) -> list[Any]:
        """The targets of all groups of a batch, after what needs the whole batch.

        total: sums a tensor over all processes.
        """

    def __call__(self, scores: Any, targets: Any) -> LossWithMetrics: ...


class OnePass:
    """Base of the scored objectives that learn from a batch once, each group of it by itself."""

    passes: ClassVar[int] = 1
    fixed_first: ClassVar[bool] = False

    def over_batch(self, targets: list[Any], total: Callable[[Tensor], Tensor]) -> list[Any]:
        """The targets as they are."""
        return targets


AnyObjective = Objective | ScoredObjective


def has_own_forward(objective: Any) -> TypeGuard[ScoredObjective]:
    """Whether this is a `ScoredObjective`."""
    return hasattr(objective, "forward")


def needs_reference(objective: AnyObjective) -> bool:
    """Whether an objective reads the reference. An objective that does not say so does."""
    return getattr(objective, "needs_reference", True)


def needs_tokens(objective: AnyObjective) -> bool:
    """Whether an objective reads single tokens. An objective that does not say so does not."""
    return getattr(objective, "needs_tokens", False)


def scores_distorted(objective: AnyObjective) -> bool:
    """Whether an objective reads log p of the chosen response over distorted images. An objective that does not say so
    does not."""
    return getattr(objective, "scores_distorted", False)


def takes_stored_reference(objective: AnyObjective) -> bool:
    """Whether stored sums of the reference are all that an objective reads of it."""
    return needs_reference(objective) and not needs_tokens(objective) and not scores_distorted(objective)


def losses_of(
    objective: Any, policy: ResponseLogps, reference: ResponseLogps | Tensor | None, ids: Ids
) -> PreferenceLoss:
    """Call an objective with what it needs of these.

    reference: log-probabilities under the reference, or their sums where the objective does not need tokens.
    """
    if not needs_reference(objective):
        reference = None
    if needs_tokens(objective):
        return objective(policy, reference, ids)
    return objective(policy, None if reference is None else _sums(reference).to(policy.sums))


@dataclass(frozen=True)
class _Pairwise:
    loss: Callable[..., PreferenceLoss]
    weights: tuple[float, ...] | None
    lengths: tuple[str, ...]
    normalize: bool
    needs_reference: bool
    scores_distorted: bool
    sft_weight: float
    changed_weight: float | None
    settings: dict[str, Any]

    @property
    def needs_tokens(self) -> bool:
        return self.changed_weight is not None

    def __call__(
        self, policy: ResponseLogps, reference: ResponseLogps | Tensor | None, ids: Ids | None = None
    ) -> PreferenceLoss:
        rejected = range(1, policy.sums.shape[1] - self.scores_distorted)
        if not rejected:
            images = " and distorted images (DistortedSource)" if self.scores_distorted else ""
            raise ValueError(f"objective: needs two responses or more{images} of each example, the source has fewer")
        weights = self.weights or [1 / len(rejected) for _ in rejected]
        result = averaged_loss(
            [self._compare([0, column], policy, reference, ids) for column in rejected], weights=weights
        )
        if not self.sft_weight:
            return result
        likelihood = sft_loss(policy.sums[:, 0], chosen_lengths=policy.lengths[:, 0])
        return result._replace(losses=result.losses + self.sft_weight * likelihood)

    def _compare(
        self, pair: list[int], policy: ResponseLogps, reference: ResponseLogps | Tensor | None, ids: Ids | None
    ) -> PreferenceLoss:
        """The loss of the chosen against the rejected response in these columns."""
        logps = [policy] if reference is None else [policy, reference]
        if self.changed_weight is None:
            sums, lengths = [_sums(one)[:, pair] for one in logps], policy.lengths[:, pair]
        else:
            weights = _token_weights(self.changed_weight, pair, policy, ids)
            sums = [_weighted_sums(one, pair, weights) for one in logps]
            lengths = weights.sum(dim=2)
        if self.normalize:
            sums = [one / lengths for one in sums]
        vectors = [vector for one in sums for vector in one.unbind(dim=1)]
        named = dict(zip(_LENGTHS, lengths.unbind(dim=1), strict=True))
        settings = {name: named[name] for name in self.lengths} | self.settings
        if self.scores_distorted:
            settings |= dict(zip(_CORRUPTED, (_sums(one)[:, -1] for one in logps), strict=True))
        return self.loss(*vectors, **settings)


def pairwise(
    loss: Callable[..., PreferenceLoss],
    weights: Sequence[float] | None = None,
    *,
    per_token: bool = False,
    sft_weight: float = 0.0,
    changed_weight: float | None = None,
    **settings: Any,
) -> Objective:
    """A pairwise loss of `mmbdhs.losses`, averaged over pairs of the chosen and each other response (Eq. 5).

    loss: takes log-probabilities of chosen and rejected responses. `mdpo_loss` also gets those of the chosen response
        over the source's distorted images, in place of the authors' random crops.
    weights: of the pairs, with sum 1; None for equal weights.
    per_token: whether to pass lengths to a loss for which they are optional, which makes IPO length-normalised. A loss
        that requires lengths always gets them.
    sft_weight: of the negative log-likelihood per token of the chosen response, which is added to the loss as in RPO
        (arXiv 2404.19733); TRL's rpo_alpha.
    changed_weight: γ of dense DPO (RLHF-V, arXiv 2312.00849), above 0, 5 in the paper: the weight of the tokens that
        `changed_tokens` finds in each pair, where other tokens have 1. None for the plain loss. Lengths become sums of
        weights; with per_token, log-probabilities are divided by them for any loss, as in the paper. Without, β keeps
        the scale of the plain loss, as in the authors' code. Stored log-probabilities of the reference are sums, so
        the reference is computed instead.
    settings: further arguments of the loss.

    Raises TypeError for settings that the loss does not take, and ValueError for numbers out of range, for per_token
    where it takes no lengths, and for changed_weight where it takes distorted images.
    """
    at_least_zero(sft_weight=sft_weight)
    if changed_weight is not None:
        above_zero(changed_weight=changed_weight)
    signature = inspect.signature(loss)
    signature.bind_partial(**settings)
    scores_distorted = _CORRUPTED[0] in signature.parameters
    if scores_distorted and changed_weight is not None:
        raise ValueError(f"changed_weight: needs a loss without distorted images, got {loss.__name__}")
    taken = {name: signature.parameters[name] for name in _LENGTHS if name in signature.parameters}
    if per_token and not taken and changed_weight is None:
        raise ValueError(f"per_token: needs a loss that takes lengths, got {loss.__name__}")
    return _Pairwise(
        loss=loss,
        weights=None if weights is None else tuple(weights),
        lengths=tuple(name for name, one in taken.items() if per_token or one.default is one.empty),
        normalize=per_token and not taken,
        needs_reference="reference_chosen_logps" in signature.parameters,
        scores_distorted=scores_distorted,
        sft_weight=sft_weight,
        changed_weight=changed_weight,
        settings=settings,
    )


def changed_tokens(first: Sequence[int], second: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of two responses the other one does not share, by Python's difflib.

    RLHF-V's code uses difflib too, but there a run of fewer than three shared tokens counts as changed, and tokens that
    were only added or only left out do not.
    """
    one, other = [True] * len(first), [True] * len(second)
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        one[block.a : block.a + block.size] = other[block.b : block.b + block.size] = [False] * block.size
    return one, other


def _sums(logps: ResponseLogps | Tensor) -> Tensor:
    """log p of each response, [B, N]."""
    return logps if isinstance(logps, Tensor) else logps.sums


def _token_weights(changed_weight: float, pair: list[int], policy: ResponseLogps, ids: Ids | None) -> Tensor:
    """The weights of the tokens of two responses, [B, 2, R]; 0 for tokens that do not count."""
    mask = policy.mask[:, pair]
    if ids is None or {len(texts) for texts in ids} != {policy.mask.shape[1]}:
        raise ValueError(
            f"changed_weight: needs the token ids of all {policy.mask.shape[1]} responses of each example (predictions "
            f"over distorted images have none), got {None if ids is None else [len(texts) for texts in ids]}"
        )
    rows = [row for texts in ids for row in changed_tokens(*(texts[column] for column in pair))]
    changed = mask.new_tensor([[*row, *[False] * (mask.shape[2] - len(row))] for row in rows])
    return torch.where(changed.view_as(mask), changed_weight, 1.0) * mask


def _weighted_sums(logps: ResponseLogps | Tensor, pair: list[int], weights: Tensor) -> Tensor:
    """The weighted sums of the log-probabilities of two responses, [B, 2]."""
    if not isinstance(logps, ResponseLogps):
        raise TypeError(f"reference: needs ResponseLogps for changed_weight, got {type(logps).__name__}")
    return (logps.tokens[:, pair].to(weights) * weights).sum(dim=2)


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
