"""Objectives of reinforcement learning from rewards: RLOO and PPO (Eq. 2 of arXiv 2407.02477).

Both learn from `RolloutSource`, and count a response's KL divergence from the reference against its reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.checks import above_zero, at_least_zero, integer, number_in
from mmbdhs.logprobs import ResponseLogps, scored_states
from mmbdhs.losses import gae, kl_k1, ppo_loss, rloo_advantages, rloo_loss
from mmbdhs.training.heads import VALUE_HEAD, apply_head
from mmbdhs.training.objectives import Ids, LossWithMetrics, OnePass, Rewards, ScoredObjective


class RolloutScores(NamedTuple):
    """What the policy says of N responses to each of B prompts.

    logps: their log-probabilities.
    entropy: of each token's distribution in nats, [B, N, R], without gradient, 0 where padded.
    values: of the place before each token, [B, N, R]; None without a value head.
    """

    logps: ResponseLogps
    entropy: Tensor
    values: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """log p of each response, [B, N]."""
        return self.logps.sums


class RLOOTargets(NamedTuple):
    """old_logps, advantages, kl: [B, N], of each response. rewards: [B, N], as they were given."""

    old_logps: Tensor
    advantages: Tensor
    kl: Tensor
    rewards: Tensor


class PPOTargets(NamedTuple):
    """old_logps, old_values, advantages, returns: [B, N, R], of each token. kl, rewards: [B, N]."""

    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    mask: Tensor
    kl: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class _RLOO(OnePass):
    beta: float
    clip_range: float
    max_kl: float
    needs_reference: ClassVar[bool] = True
    needs_rewards: ClassVar[bool] = True
    head: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        at_least_zero(beta=self.beta)
        above_zero(clip_range=self.clip_range, max_kl=self.max_kl)

    def forward(self, model: nn.Module, prompts: Sequence[Mapping[str, Any]], ids: Ids) -> RolloutScores:
        logps, entropy, _ = scored_states(model, prompts, ids)
        return RolloutScores(logps, entropy)

    def targets(self, scores: RolloutScores, reference: ResponseLogps, rewards: Rewards) -> RLOOTargets:
        old = scores.sums.detach()
        kl = kl_k1(old, reference.sums.to(old))
        return RLOOTargets(old, rloo_advantages(rewards.learned - self.beta * kl), kl, rewards.raw)

    def __call__(self, scores: RolloutScores, targets: RLOOTargets) -> LossWithMetrics:
        log_ratios, advantages = scores.sums - targets.old_logps, targets.advantages
        flat = (one.flatten() for one in (scores.sums, targets.old_logps, advantages))
        losses = rloo_loss(*flat, clip_range=self.clip_range).view_as(advantages).mean(dim=1)
        ratios = log_ratios.detach().exp()
        clipped = torch.where(advantages > 0, ratios > 1 + self.clip_range, ratios < 1 - self.clip_range)
        return LossWithMetrics(losses, _metrics(scores, targets.kl, targets.rewards, clipped.float()))


@dataclass(frozen=True)
class _PPO:
    beta: float
    clip_range: float
    max_kl: float
    value_clip_range: float
    value_weight: float
    gamma: float
    lam: float
    passes: int
    needs_reference: ClassVar[bool] = True
    needs_rewards: ClassVar[bool] = True
    head: ClassVar[str | None] = VALUE_HEAD
    fixed_first: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_zero(beta=self.beta, value_weight=self.value_weight)
        above_zero(clip_range=self.clip_range, value_clip_range=self.value_clip_range, max_kl=self.max_kl)
        number_in("gamma", self.gamma, 0, 1)
        number_in("lam", self.lam, 0, 1)
        integer("num_ppo_epochs", self.passes, 1)

    def forward(self, model: nn.Module, prompts: Sequence[Mapping[str, Any]], ids: Ids) -> RolloutScores:
        logps, entropy, states = scored_states(model, prompts, ids)
        return RolloutScores(logps, entropy, apply_head(model, VALUE_HEAD, states))

    def targets(self, scores: RolloutScores, reference: ResponseLogps, rewards: Rewards) -> PPOTargets:
        old, values, mask = scores.logps.tokens.detach(), _values(scores).detach(), scores.logps.mask
        kl = kl_k1(old, reference.tokens.to(old)) * mask
        ends = (scores.logps.lengths - 1)[..., None]
        by_token = (-self.beta * kl).scatter_add(2, ends, rewards.learned[..., None].to(kl))
        flat = (one.flatten(0, 1) for one in (by_token, values, mask))
        advantages, returns = (one.view_as(old) for one in gae(*flat, gamma=self.gamma, lam=self.lam))
        return PPOTargets(old, values, advantages, returns, mask, kl.sum(dim=2), rewards.raw)

    def over_batch(self, targets: list[PPOTargets], total: Callable[[Tensor], Tensor]) -> list[PPOTargets]:
        """Whiten the advantages over all tokens of the batch, as `mmbdhs.losses.whiten` does it for one tensor."""
        tokens = torch.cat([torch.zeros(0), *(one.advantages[one.mask].cpu() for one in targets)]).double()
        count, mean = total(torch.tensor([len(tokens), float(tokens.sum())], dtype=torch.float64))
        mean = mean / count.clamp(min=1)
        squares = total((tokens - mean).square().sum())
        scale = float(torch.rsqrt(squares / (count - 1).clamp(min=1) + 1e-8))
        whitened = (((one.advantages - float(mean)) * scale).masked_fill(~one.mask, 0.0) for one in targets)
        return [one._replace(advantages=new) for one, new in zip(targets, whitened, strict=True)]

    def __call__(self, scores: RolloutScores, targets: PPOTargets) -> LossWithMetrics:
        new = scores.logps.tokens, targets.old_logps, targets.advantages
        of_values = _values(scores), targets.old_values, targets.returns
        result = ppo_loss(
            *(one.flatten(0, 1) for one in (*new, *of_values, targets.mask)),
            clip_range=self.clip_range,
            value_clip_range=self.value_clip_range,
            value_weight=self.value_weight,
        )
        losses = result.losses.view_as(targets.mask).sum(dim=(1, 2)) / targets.mask.sum(dim=(1, 2))
        clipped = (result.policy_clipped.view_as(targets.mask) & targets.mask).sum(dim=2) / targets.mask.sum(dim=2)
        return LossWithMetrics(losses, _metrics(scores, targets.kl, targets.rewards, clipped))


def rloo(*, beta: float = 0.4, clip_range: float = 0.2, max_kl: float = 100.0) -> ScoredObjective:
    """REINFORCE with the mean reward of the other responses to the prompt as the baseline (arXiv 2402.14740).

    A batch is learned from once, so that nothing is clipped but by rounding. Defaults are the paper's where it has any.

    beta: β of the penalty β log π/π_ref of a response, at least 0.
    clip_range: of the ratio of a response's probabilities, above 0.
    max_kl: nats per response, above 0. A batch that is further from the reference on average ends the run, with a
        checkpoint of the state before it.

    Raises ValueError for numbers out of range.
    """
    return _RLOO(beta, clip_range, max_kl)


def ppo(
    *,
    beta: float = 0.2,
    clip_range: float = 0.2,
    value_clip_range: float = 0.2,
    value_weight: float = 0.1,
    gamma: float = 1.0,
    lam: float = 0.95,
    num_ppo_epochs: int = 4,
    max_kl: float = 100.0,
) -> ScoredObjective:
    """Proximal policy optimisation (arXiv 1707.06347) with a value head on the policy's own hidden states.

    The reward counts at a response's last token and β log π/π_ref at every token; advantages are whitened over the
    batch. The loss of an example is the mean over the tokens of its responses. The paper names no β, no ranges and no
    number of passes for PPO; these are the defaults that TRL's first PPOTrainer had.

    beta: β, at least 0.
    clip_range, value_clip_range: of ratios and values, above 0.
    value_weight: of the value loss, at least 0.
    gamma, lam: of `gae`, in [0, 1].
    num_ppo_epochs: optimiser steps that learn from one batch.
    max_kl: as for `rloo`, before the first of these.

    Raises ValueError for numbers out of range.
    """
    return _PPO(beta, clip_range, max_kl, value_clip_range, value_weight, gamma, lam, num_ppo_epochs)


def _values(scores: RolloutScores) -> Tensor:
    if scores.values is None:
        raise ValueError("scores: need values for PPO, got none")
    return scores.values


def _metrics(scores: RolloutScores, kl: Tensor, rewards: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Means over the responses of each prompt. kl, rewards, clipped: [B, N]"""
    lengths = scores.logps.lengths
    by_response = {"rewards": rewards, "kl": kl, "lengths": lengths, "clipped": clipped}
    by_response["entropy"] = scores.entropy.sum(dim=2) / lengths
    return {name: value.detach().double().mean(dim=1) for name, value in by_response.items()}
