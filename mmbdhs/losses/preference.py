"""Preference losses with a reference model.

Each takes four float vectors [B]: the log-probabilities in nats that policy and reference give to the chosen and to
the rejected response, summed over the tokens of the response. Below, r(y) = β log π(y)/π_ref(y) is the reward of a
response, r₊ that of the chosen and r₋ that of the rejected one; the losses return both. `mmbdhs.losses` says what all
losses have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks
from mmbdhs.losses.pairs import (
    PreferenceLoss,
    log_ratios_of,
    logistic,
    named_vectors,
    of_rewards,
    per_token,
    preference,
    rewards_of,
)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """DPO, −log σ(r₊ − r₋): Eq. 3 of arXiv 2407.02477, from arXiv 2305.18290.

    beta: β, above 0.
    label_smoothing: ε of conservative DPO (Mitchell, "A note on DPO with noisy preferences", 2023), in [0, 0.5). The
        loss is then −(1 − ε) log σ(r₊ − r₋) − ε log σ(r₋ − r₊). TRL's "sigmoid" does not smooth; its "robust" is
        robust_dpo_loss.
    """
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return preference(logistic(chosen - rejected, label_smoothing), chosen, rejected)


def robust_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> PreferenceLoss:
    """Robust DPO, [−(1 − ε) log σ(m) + ε log σ(−m)] / (1 − 2ε) with m = r₊ − r₋ (arXiv 2403.00409).

    In expectation over labels of which a share ε is flipped, this is DPO on the clean labels. Unlike dpo_loss with
    smoothing, it can be negative.

    beta: β, above 0.
    label_smoothing: ε, in [0, 0.5).
    """
    checks.below_half(label_smoothing)
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    margins = chosen - rejected
    clean, flipped = F.logsigmoid(margins), F.logsigmoid(-margins)
    losses = (label_smoothing * flipped - (1 - label_smoothing) * clean) / (1 - 2 * label_smoothing)
    return preference(losses, chosen, rejected)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> PreferenceLoss:
    """IPO, (h₊ − h₋ − 1/(2β))² with h = log π(y)/π_ref(y) (arXiv 2310.12036, Eq. 17). Rewards are β h.

    beta: the paper's τ, above 0.
    chosen_lengths, rejected_lengths: tokens of each response, [B], above 0. Without them h is a sum over tokens: the
        equation as printed, also in eric-mitchell's direct-preference-optimization. With both, h is the mean per token,
        as in TRL's "ipo". A β tuned for one is wrong for the other.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = log_ratios_of(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        lengths={"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths},
    )
    chosen, rejected = per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)
    return preference((chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected)


@of_rewards
def slic_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """SLiC's hinge on reference-normalised likelihoods, max(0, 1 − (r₊ − r₋)) (arXiv 2309.06657); TRL's "hinge".

    slic_hf_loss is the original, without a reference model.

    beta: β, above 0.
    """
    return F.relu(1 - (chosen - rejected))


def gpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    link: Callable[[Tensor], Tensor],
    beta: float = 0.1,
) -> PreferenceLoss:
    """Generalised preference optimisation, f(r₊ − r₋) with any convex f (arXiv 2402.05749).

    −log σ(m) is DPO, max(0, 1 − m) is SLiC, (m − 1)² at beta = 2τ is 4τ² times IPO, exp(−m) is the exponential loss,
    max(0, 1 − m)² the truncated quadratic.

    link: f, from float [B] to float [B].
    beta: β, above 0.
    """
    if not callable(link):
        raise TypeError(f"link: needs a callable, got {type(link).__name__}")
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    losses = link(chosen - rejected)
    checks.same_shape({"policy_chosen_logps": chosen, "link's result": losses})
    return preference(losses, chosen, rejected)


def exo_pair_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> PreferenceLoss:
    """EXO for two responses, KL(q ‖ p) of q = (σ(m), σ(−m)) from p = (1 − ε, ε), with m = r₊ − r₋.

    This is Eq. 16 of arXiv 2402.00856.

    beta: β, above 0.
    label_smoothing: ε, in (0, 0.5); at 0 the divergence would be infinite.
    """
    checks.above_zero(label_smoothing=label_smoothing)
    checks.below_half(label_smoothing)
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    log_chosen, log_rejected = F.logsigmoid(chosen - rejected), F.logsigmoid(rejected - chosen)
    losses = log_chosen.exp() * (log_chosen - math.log1p(-label_smoothing))
    losses = losses + log_rejected.exp() * (log_rejected - math.log(label_smoothing))
    return preference(losses, chosen, rejected)


@of_rewards
def nca_pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Noise contrastive alignment of a pair, −log σ(r₊) − ½ log σ(−r₊) − ½ log σ(−r₋) (arXiv 2402.05369).

    beta: β, above 0.
    """
    noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - 0.5 * noise


def bco_pair_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    reward_shift: float = 0.0,
) -> PreferenceLoss:
    """Binary classifier optimisation, −log σ(r₊ − δ) − log σ(δ − r₋) (arXiv 2404.04656).

    beta: β, above 0.
    reward_shift: δ, in the paper a running mean of both rewards; TRL's and Liger's "bco_pair" have δ = 0.
    """
    checks.finite_number(reward_shift=reward_shift)
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    losses = -F.logsigmoid(chosen - reward_shift) - F.logsigmoid(reward_shift - rejected)
    return preference(losses, chosen, rejected)


def sppo_hard_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> PreferenceLoss:
    """Self-play preference optimisation, (h₊ − 1/(2β))² + (h₋ + 1/(2β))² with h = log π(y)/π_ref(y).

    This is Eq. 4.7 of arXiv 2405.00675 with η = 1/β and win probabilities of 1 and 0. The reference is the policy of
    the last round.

    beta: β, above 0.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = log_ratios_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    return preference(losses, beta * chosen, beta * rejected)


@of_rewards
def apo_zero_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """APO-zero, σ(−r₊) + σ(r₋): raises the chosen and lowers the rejected response (arXiv 2408.06266, Eq. 7).

    It is meant for chosen responses that are better than the model's own.

    beta: β, above 0.
    """
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


@of_rewards
def apo_down_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """APO-down, σ(r₊) + σ(r₋ − r₊): lowers both responses, the rejected one more (arXiv 2408.06266, Eq. 8).

    It is meant for chosen responses that are worse than the model's own.

    beta: β, above 0.
    """
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def discopop_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    tau: float = 0.05,
) -> PreferenceLoss:
    """The loss that DiscoPOP found, (1 − w)(−log σ(m)) + w exp(−m) with m = r₊ − r₋ and w = σ(m/τ).

    This is Eq. 5 of arXiv 2406.08414.

    beta: β, above 0.
    tau: τ, in (0, 1]; above 1 the loss would grow exponentially with −m.
    """
    checks.above_zero(tau=tau)
    checks.number_in("tau", tau, 0, 1)
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    margins = chosen - rejected
    exponential = torch.exp(F.logsigmoid(margins / tau) - margins)  # computing w and exp(−m) apart would make 0 · ∞
    return preference(exponential - torch.sigmoid(-margins / tau) * F.logsigmoid(margins), chosen, rejected)


def aot_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Alignment via optimal transport of paired data (arXiv 2406.05882): the batch's margins under the policy dominate
    those under the reference.

    With a = sort(log π(y₊)/π(y₋)) and b = sort(log π_ref(y₊)/π_ref(y₋)), the i-th loss is dpo_loss's of β (aᵢ − bᵢ). So
    it belongs to a rank, not to an example. Rewards belong to examples.

    beta: β, above 0.
    label_smoothing: as in dpo_loss.
    """
    checks.above_zero(beta=beta)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = checks.sequences(
        named_vectors(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    )
    policy = (policy_chosen - policy_rejected).sort().values
    reference = (reference_chosen - reference_rejected).sort().values
    losses = logistic(beta * (policy - reference), label_smoothing)
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return preference(losses, beta * chosen, beta * rejected)


def aot_unpaired_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """aot_loss for chosen and rejected responses of different prompts: the batch's sorted r₊ against its sorted r₋.

    The i-th loss belongs to the i-th rank (arXiv 2406.05882).

    beta: β, above 0.
    label_smoothing: as in dpo_loss.
    """
    chosen, rejected = rewards_of(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    losses = logistic(chosen.sort().values - rejected.sort().values, label_smoothing)
    return preference(losses, chosen, rejected)


def mdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    policy_corrupted_logps: Tensor,
    reference_corrupted_logps: Tensor,
    beta: float = 0.1,
    anchor: float = 0.0,
) -> PreferenceLoss:
    """mDPO, −log σ(r₊ − r₋) − log σ(r₊ − r̃₊) − log σ(r₊ − δ) (arXiv 2406.11839).

    The terms are DPO, the same for a pair of images, and an anchor that keeps the chosen response's reward above δ.

    policy_corrupted_logps, reference_corrupted_logps: log-probabilities of the chosen response given the corrupted
        image (cropped, or with hidden tokens), [B]; they make r̃₊.
    beta: β, above 0.
    anchor: δ, in units of reward; 0 in the paper.
    """
    checks.above_zero(beta=beta)
    checks.finite_number(anchor=anchor)
    given = named_vectors(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    given |= {"policy_corrupted_logps": policy_corrupted_logps, "reference_corrupted_logps": reference_corrupted_logps}
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, *corrupted_pair = checks.sequences(given)
    policy_corrupted, reference_corrupted = corrupted_pair
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    corrupted = beta * (policy_corrupted - reference_corrupted)
    losses = logistic(chosen - rejected) + logistic(chosen - corrupted) + logistic(chosen - anchor)
    return preference(losses, chosen, rejected)
