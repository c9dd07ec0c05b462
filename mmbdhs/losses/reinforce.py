"""Reinforcement learning against a reward: RLOO, PPO, and estimates of the KL divergence from the reference (Eq. 2).

Everything is per sequence, float [B], or per token, float [B, T] with a bool mask [B, T] of the response's tokens.
Values outside of the mask are not read, and results are 0 there. Advantages, returns and the old policy's numbers are
constants: no gradient goes through them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmbdhs import checks

# e^20 is 5e8. Beyond it exp is continued along its tangent: no ratio overflows, and every gradient keeps its sign.
LARGEST_EXPONENT = 20.0


class Advantages(NamedTuple):
    """What `gae` returns, detached and 0 outside of the mask.

    advantages: [B, T].
    returns: [B, T].
    """

    advantages: Tensor
    returns: Tensor


class PPOLoss(NamedTuple):
    """What `ppo_loss` returns, all [B, T] and 0 outside of the mask: reduce as `losses[mask].mean()` or per sequence.

    losses: policy_losses + value_weight * value_losses.
    policy_losses, value_losses: the two terms.
    policy_clipped, value_clipped: bool, where clipping has an effect.
    """

    losses: Tensor
    policy_losses: Tensor
    value_losses: Tensor
    policy_clipped: Tensor
    value_clipped: Tensor


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Each response's reward less the mean reward of the prompt's other responses, [P, k], detached (arXiv 2402.14740).

    rewards: float [P, k], of k ≥ 2 responses to each of P prompts. A KL penalty is already in it: score − β (kl_k1
        summed over tokens), as in Eq. 2 of arXiv 2407.02477.
    """
    checks.same_shape({"rewards": rewards}, dims=2)
    (wide,) = checks.widened({"rewards": rewards})
    responses = wide.shape[1]
    if responses < 2:
        raise ValueError(f"rewards: needs at least 2 responses to a prompt, got {responses}")
    checks.require(*checks.finite({"rewards": wide}))
    others = (wide.sum(dim=1, keepdim=True) - wide) / (responses - 1)
    return (wide - others).detach()


def rloo_loss(policy_logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip_range: float = 0.2) -> Tensor:
    """RLOO's loss −min(ρA, clip(ρ, 1 ± c)A), [B], with ρ = π(y)/π_old(y) of the whole response; as in TRL's trainer.

    With old_logps = policy_logps.detach() the gradient is that of −A log π(y), REINFORCE (arXiv 2402.14740). Above
    e^20, ρ grows along its tangent.

    policy_logps, old_logps: float [B], summed over tokens.
    advantages: A [B], rloo_advantages(…).flatten().
    clip_range: c, above 0.
    """
    checks.above_zero(clip_range=clip_range)
    policy, old, advantages = checks.sequences(
        {"policy_logps": policy_logps, "old_logps": old_logps, "advantages": advantages}
    )
    return _surrogate(policy - old.detach(), advantages.detach(), clip_range)[0]


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Whitened values (x − mean) / √(variance + 1e-8) over all n tokens of the mask, [B, T].

    values: float [B, T].
    mask: bool [B, T], with n ≥ 2 tokens. The variance is a sum of squares divided by n − 1.
    """
    (values,) = checks.tokens({"values": values}, mask, at_least=2)
    count = mask.sum()
    mean = values.sum() / count
    centred = (values - mean).masked_fill(~mask, 0.0)
    return centred * torch.rsqrt(centred.square().sum() / (count - 1) + 1e-8)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalised advantage estimation, Â_t = Σ (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t.

    This is Eq. 16 of arXiv 1506.02438. Advantages are not whitened (see `whiten`); returns are advantages + values. The
    value after a row's last token is 0.

    rewards, values: float [B, T].
    mask: bool [B, T]. Tokens outside of it are skipped: padding, or tokens in the middle that are not the policy's own.
    gamma: γ, in [0, 1].
    lam: λ, in [0, 1].
    """
    checks.number_in("gamma", gamma, 0, 1)
    checks.number_in("lam", lam, 0, 1)
    rewards, values = (given.detach() for given in checks.tokens({"rewards": rewards, "values": values}, mask))
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        here = mask[:, step]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, values[:, step], next_value)
        advantages[:, step] = next_advantage
    advantages = advantages.masked_fill(~mask, 0.0)
    return Advantages(advantages, advantages + values)


def ppo_loss(
    policy_logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
    value_clip_range: float = 0.2,
    value_weight: float = 0.1,
) -> PPOLoss:
    """PPO's loss per token, −min(ρA, clip(ρ, 1 ± c)A) with ρ = π/π_old (arXiv 1707.06347, Eq. 7), plus value_weight
    times ½ max((V − R)², (clip(V, V_old ± c_v) − R)²).

    Above e^20, ρ grows along its tangent; verl holds it constant there, which leaves it without a gradient.

    policy_logps, values: float [B, T], by the model that is trained.
    old_logps, old_values: float [B, T], by the model that sampled.
    advantages, returns: float [B, T], from `gae`; advantages usually after `whiten`.
    mask: bool [B, T].
    clip_range: c, above 0.
    value_clip_range: c_v, above 0.
    value_weight: from 0.
    """
    checks.above_zero(clip_range=clip_range, value_clip_range=value_clip_range)
    checks.at_least_zero(value_weight=value_weight)
    given = {"policy_logps": policy_logps, "old_logps": old_logps, "advantages": advantages}
    given |= {"values": values, "old_values": old_values, "returns": returns}
    policy, old, advantages, values, old_values, returns = checks.tokens(given, mask)
    old_values, returns = old_values.detach(), returns.detach()
    policy_losses, policy_clipped = _surrogate(policy - old.detach(), advantages.detach(), clip_range)
    near = torch.clamp(values, old_values - value_clip_range, old_values + value_clip_range)
    error, near_error = (values - returns).square(), (near - returns).square()
    value_losses = 0.5 * torch.maximum(error, near_error)
    losses = policy_losses + value_weight * value_losses
    return PPOLoss(losses, policy_losses, value_losses, policy_clipped, near_error > error)


def kl_k1(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The estimate log π/π_ref of KL(π ‖ π_ref), unbiased for tokens drawn from π, of either sign.

    It is k1 of http://joschu.net/blog/kl-approx.html.

    policy_logps, reference_logps: float, of any one shape, which the result has too.
    """
    return _log_ratio(policy_logps, reference_logps)


def kl_k2(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The estimate ½ (log π/π_ref)²: biased, with less variance than kl_k1, and with an unbiased gradient.

    Arguments are those of kl_k1.
    """
    return 0.5 * _log_ratio(policy_logps, reference_logps).square()


def kl_k3(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """GRPO's estimate π_ref/π − 1 − log π_ref/π: unbiased and never negative. Above e^20, π_ref/π grows along its
    tangent. Arguments are those of kl_k1."""
    log_ratio = -_log_ratio(policy_logps, reference_logps)
    near = log_ratio.clamp(max=LARGEST_EXPONENT)
    # expm1 keeps the digits of small divergences, which exp(x) − 1 − x would cancel away.
    return torch.expm1(near) - near + math.expm1(LARGEST_EXPONENT) * (log_ratio - near)


def _log_ratio(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    named = {"policy_logps": policy_logps, "reference_logps": reference_logps}
    checks.same_shape(named)
    policy, reference = checks.widened(named)
    checks.require(*checks.finite(named))
    return policy - reference


def _surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped loss, and where clipping took effect."""
    ratio = _exp(log_ratio)
    free, clipped = ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return -torch.minimum(free, clipped), clipped < free


def _exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=LARGEST_EXPONENT).exp() * (1 + (exponent - LARGEST_EXPONENT).relu())
