"""Reinforcement learning against a reward: RLOO, PPO, and estimates of the KL divergence from the reference (Eq. 2).

Values belong to sequences, float [B], or to tokens, float [B, T] with a bool mask [B, T] of the response's tokens.
Values outside the mask are not read, and results are 0 there. Advantages, returns and what the old policy computed are
constants: no gradient goes through them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmbdhs import checks

# e^20 is 5e8. Above it exp continues along its tangent, so that no ratio overflows and gradients keep their sign.
LARGEST_EXPONENT = 20.0


class Advantages(NamedTuple):
    """The result of `gae`.

    advantages, returns: [B, T], detached, 0 outside the mask.
    """

    advantages: Tensor
    returns: Tensor


class PPOLoss(NamedTuple):
    """Losses of tokens, [B, T] and 0 outside the mask; reduce them as `losses[mask].mean()` or per sequence.

    losses: policy_losses + value_weight * value_losses.
    policy_losses, value_losses: the two terms.
    policy_clipped, value_clipped: bool, True where clipping changes the loss.
    """

    losses: Tensor
    policy_losses: Tensor
    value_losses: Tensor
    policy_clipped: Tensor
    value_clipped: Tensor


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Each response's reward minus the mean reward of the other responses to its prompt (arXiv 2402.14740).

    Returns a detached tensor [P, k].

    rewards: float [P, k], of k ≥ 2 responses to each of P prompts. A KL penalty has to be subtracted before:
        score − β (kl_k1 summed over tokens), as in Eq. 2 of arXiv 2407.02477.
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
    """RLOO, −min(ρA, clip(ρ, 1 ± c)A), [B], with ρ = π(y)/π_old(y) of the whole response, as in TRL's RLOOTrainer.

    With old_logps = policy_logps.detach() the gradient is that of −A log π(y), REINFORCE (arXiv 2402.14740). Above
    e^20, ρ grows along its tangent.

    policy_logps, old_logps: float [B], summed over tokens.
    advantages: A, float [B], rloo_advantages(…).flatten().
    clip_range: c, above 0.
    """
    checks.above_zero(clip_range=clip_range)
    policy, old, advantages = checks.sequences(
        {"policy_logps": policy_logps, "old_logps": old_logps, "advantages": advantages}
    )
    return _surrogate(policy - old.detach(), advantages.detach(), clip_range)[0]


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Whiten values, (x − mean) / √(variance + 1e-8), over all n tokens of the mask; the variance divides by n − 1.

    values: float [B, T].
    mask: bool [B, T], True for at least 2 tokens.
    """
    (values,) = checks.tokens(mask, at_least=2, values=values)
    count = mask.sum()
    mean = values.sum() / count
    centred = (values - mean).masked_fill(~mask, 0.0)
    return centred * torch.rsqrt(centred.square().sum() / (count - 1) + 1e-8)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalised advantage estimation, Â_t = Σ (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t.

    It is Eq. 16 of arXiv 1506.02438. The value after a row's last token is 0. Returns are advantages + values. Nothing
    is whitened; see `whiten`.

    rewards, values: float [B, T].
    mask: bool [B, T]. Tokens outside are skipped: padding, and tokens in the middle that the policy did not write.
    gamma, lam: γ and λ in [0, 1].
    """
    checks.number_in("gamma", gamma, 0, 1)
    checks.number_in("lam", lam, 0, 1)
    rewards, values = (given.detach() for given in checks.tokens(mask, rewards=rewards, values=values))
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
    """PPO per token, −min(ρA, clip(ρ, 1 ± c)A) + w ½ max((V − R)², (clip(V, V_old ± c_v) − R)²) with ρ = π/π_old.

    The first term is Eq. 7 of arXiv 1707.06347. Above e^20, ρ grows along its tangent; verl holds it constant there,
    which leaves it without a gradient.

    policy_logps, values: float [B, T], of the model that is trained.
    old_logps, old_values: float [B, T], of the model that sampled.
    advantages, returns: A and R, float [B, T], from `gae`; advantages usually after `whiten`.
    mask: bool [B, T].
    clip_range, value_clip_range: c and c_v, above 0.
    value_weight: w, at least 0.
    """
    checks.above_zero(clip_range=clip_range, value_clip_range=value_clip_range)
    checks.at_least_zero(value_weight=value_weight)
    policy, old, advantages, values, old_values, returns = checks.tokens(
        mask,
        policy_logps=policy_logps,
        old_logps=old_logps,
        advantages=advantages,
        values=values,
        old_values=old_values,
        returns=returns,
    )
    old_values, returns = old_values.detach(), returns.detach()
    policy_losses, policy_clipped = _surrogate(policy - old.detach(), advantages.detach(), clip_range)
    near = torch.clamp(values, old_values - value_clip_range, old_values + value_clip_range)
    error, near_error = (values - returns).square(), (near - returns).square()
    value_losses = 0.5 * torch.maximum(error, near_error)
    losses = policy_losses + value_weight * value_losses
    return PPOLoss(losses, policy_losses, value_losses, policy_clipped, near_error > error)


def kl_k1(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The estimate log π/π_ref of KL(π ‖ π_ref): unbiased if tokens were drawn from π, and of either sign.

    See http://joschu.net/blog/kl-approx.html. The result has the arguments' shape.

    policy_logps, reference_logps: float, of any one shape.
    """
    return _log_ratio(policy_logps, reference_logps)


def kl_k2(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The estimate ½ (log π/π_ref)²: biased, with a lower variance than kl_k1; its gradient is unbiased.

    policy_logps, reference_logps: float, of any one shape, which the result has.
    """
    return 0.5 * _log_ratio(policy_logps, reference_logps).square()


def kl_k3(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The estimate π_ref/π − 1 − log π_ref/π, which GRPO uses: unbiased and never negative.

    Above e^20, π_ref/π grows along its tangent.

    policy_logps, reference_logps: float, of any one shape, which the result has.
    """
    log_ratio = -_log_ratio(policy_logps, reference_logps)
    near = log_ratio.clamp(max=LARGEST_EXPONENT)
    # expm1 keeps the digits of small divergences, which would cancel in exp(x) − 1 − x.
    return torch.expm1(near) - near + math.expm1(LARGEST_EXPONENT) * (log_ratio - near)


def _log_ratio(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    named = {"policy_logps": policy_logps, "reference_logps": reference_logps}
    checks.same_shape(named)
    policy, reference = checks.widened(named)
    checks.require(*checks.finite(named))
    return policy - reference


def _surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped loss −min(ρA, clip(ρ, 1 ± c)A), and where clipping changed it."""
    ratio = _exp(log_ratio)
    free, clipped = ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return -torch.minimum(free, clipped), clipped < free


def _exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=LARGEST_EXPONENT).exp() * (1 + (exponent - LARGEST_EXPONENT).relu())
