"""Preference losses with a reference model.

Each takes four float vectors [B], the log-probabilities that policy and reference give to the chosen and the rejected
response, summed over the tokens of the response; r(y) = β log π(y)/π_ref(y) below, r₊ of the chosen, r₋ of the
rejected, and these are the rewards given back. `mmbdhs.losses` says what all losses have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks
from mmbdhs.losses.pairs import PreferenceLoss, logistic, per_token, preference


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """−log σ(r₊ − r₋): Eq. 3 of arXiv 2407.02477, from arXiv 2305.18290. Log-probabilities in nats, [B].

    label_smoothing: ε of conservative DPO (Mitchell, "A note on DPO with noisy preferences", 2023), in [0, 0.5):
    −(1 − ε) log σ(r₊ − r₋) − ε log σ(r₋ − r₊). TRL's "sigmoid" does not smooth; its "robust" is robust_dpo_loss.
    Raises ValueError or TypeError naming the argument for shapes that differ, numbers that are not finite, beta ≤ 0.
    """
    chosen, rejected = _rewards(
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
    """[−(1 − ε) log σ(m) + ε log σ(−m)] / (1 − 2ε), m = r₊ − r₋: in expectation over labels of which a share ε is
    flipped, this is DPO on the clean ones (arXiv 2403.00409). Unlike dpo_loss's smoothing it can be negative.
    """
    checks.below_half(label_smoothing)
    chosen, rejected = _rewards(
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
    """(h₊ − h₋ − 1/(2β))², h = log π(y)/π_ref(y); β is the paper's τ (arXiv 2310.12036, Eq. 17).

    Without lengths h is the sum over tokens: the equation as printed, also in eric-mitchell's
    direct-preference-optimization. With both lengths ([B], tokens of each response, above 0) h is divided by them: the
    mean per token, as in TRL's "ipo". A β tuned for one is wrong for the other. Rewards are β h, with the same h.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = _log_ratios(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        lengths={"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths},
    )
    chosen, rejected = per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)
    return preference((chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected)


def slic_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> PreferenceLoss:
    """max(0, 1 − (r₊ − r₋)): SLiC's hinge on reference-normalised likelihoods (arXiv 2309.06657), TRL's "hinge".
    slic_hf_loss is the original without a reference model."""
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return preference(F.relu(1 - (chosen - rejected)), chosen, rejected)


def gpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    link: Callable[[Tensor], Tensor],
    beta: float = 0.1,
) -> PreferenceLoss:
    """f(r₊ − r₋) with any convex f = link, float [B] to [B] (arXiv 2402.05749): −log σ(m) is DPO, max(0, 1 − m) SLiC,
    (m − 1)² at beta = 2τ is 4τ² times IPO, exp(−m) the exponential loss, max(0, 1 − m)² the truncated quadratic."""
    if not callable(link):
        raise TypeError(f"link: needs a callable, got {type(link).__name__}")
    chosen, rejected = _rewards(
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
    """KL(q ‖ p) of q = (σ(m), σ(−m)) from p = (1 − ε, ε), m = r₊ − r₋ (arXiv 2402.00856, Eq. 16 for two responses).
    label_smoothing: ε in (0, 0.5); at 0 the divergence would be infinite."""
    checks.above_zero(label_smoothing=label_smoothing)
    checks.below_half(label_smoothing)
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    log_chosen, log_rejected = F.logsigmoid(chosen - rejected), F.logsigmoid(rejected - chosen)
    losses = log_chosen.exp() * (log_chosen - math.log1p(-label_smoothing))
    losses = losses + log_rejected.exp() * (log_rejected - math.log(label_smoothing))
    return preference(losses, chosen, rejected)


def nca_pair_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> PreferenceLoss:
    """−log σ(r₊) − ½ log σ(−r₊) − ½ log σ(−r₋): noise contrastive alignment of a pair (arXiv 2402.05369)."""
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return preference(-F.logsigmoid(chosen) - 0.5 * noise, chosen, rejected)


def bco_pair_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    reward_shift: float = 0.0,
) -> PreferenceLoss:
    """−log σ(r₊ − δ) − log σ(δ − r₋): binary classifier optimisation (arXiv 2404.04656).

    reward_shift: δ, in the paper a running mean of both rewards. TRL's and Liger's "bco_pair" have none, δ = 0.
    """
    checks.finite_number(reward_shift=reward_shift)
    chosen, rejected = _rewards(
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
    """(h₊ − 1/(2β))² + (h₋ + 1/(2β))², h = log π(y)/π_ref(y): self-play preference optimisation with win probabilities
    of 1 and 0 (arXiv 2405.00675, Eq. 4.7 with η = 1/β). The reference is the policy of the last round."""
    checks.above_zero(beta=beta)
    chosen, rejected = _log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    return preference(losses, beta * chosen, beta * rejected)


def apo_zero_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> PreferenceLoss:
    """σ(−r₊) + σ(r₋): raises the chosen, lowers the rejected; for chosen responses better than the model's own
    (arXiv 2408.06266, Eq. 7)."""
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return preference(torch.sigmoid(-chosen) + torch.sigmoid(rejected), chosen, rejected)


def apo_down_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> PreferenceLoss:
    """σ(r₊) + σ(r₋ − r₊): lowers both, the rejected more; for chosen responses worse than the model's own
    (arXiv 2408.06266, Eq. 8)."""
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return preference(torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen), chosen, rejected)


def discopop_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    tau: float = 0.05,
) -> PreferenceLoss:
    """(1 − w)(−log σ(m)) + w exp(−m), m = r₊ − r₋, w = σ(m/τ): the loss that DiscoPOP found (arXiv 2406.08414, Eq. 5).
    tau: in (0, 1]; above 1 the loss would grow exponentially with −m."""
    checks.above_zero(tau=tau)
    checks.unit_interval(tau=tau)
    chosen, rejected = _rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    margins = chosen - rejected
    exponential = torch.exp(F.logsigmoid(margins / tau) - margins)  # w and exp(−m) apart would make 0 · ∞
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
    those under the reference. With a = sort(log π(y₊)/π(y₋)) and b = sort(log π_ref(y₊)/π_ref(y₋)),
    the i-th loss is dpo_loss's of β (aᵢ − bᵢ), so it is that of a rank, not of an example. Rewards are per example."""
    checks.above_zero(beta=beta)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = _vectors(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
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
    """aot_loss where chosen and rejected responses need not be of the same prompts: the batch's sorted r₊ against its
    sorted r₋ (arXiv 2406.05882). The i-th loss is that of the i-th rank."""
    chosen, rejected = _rewards(
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
    """−log σ(r₊ − r₋) − log σ(r₊ − r̃₊) − log σ(r₊ − δ): DPO, the same for a pair of images, and an anchor that
    keeps the chosen response's reward above δ (arXiv 2406.11839, where δ is 0 by default).

    policy_corrupted_logps, reference_corrupted_logps: [B], of the chosen response given the corrupted image (cropped,
    or with hidden tokens), which make r̃₊. anchor: δ, in units of reward.
    """
    checks.above_zero(beta=beta)
    checks.finite_number(anchor=anchor)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, policy_corrupted, reference_corrupted = (
        _vectors(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            policy_corrupted_logps=policy_corrupted_logps,
            reference_corrupted_logps=reference_corrupted_logps,
        )
    )
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    corrupted = beta * (policy_corrupted - reference_corrupted)
    losses = logistic(chosen - rejected) + logistic(chosen - corrupted) + logistic(chosen - anchor)
    return preference(losses, chosen, rejected)


def _rewards(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    checks.above_zero(beta=beta)
    chosen, rejected = _log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return beta * chosen, beta * rejected


def _log_ratios(*four: Tensor, lengths: dict[str, Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = _vectors(*four, lengths=lengths)
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def _vectors(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    lengths: dict[str, Tensor | None] | None = None,
    **more: Tensor,
) -> list[Tensor]:
    return checks.sequences(
        lengths,
        policy_chosen_logps=policy_chosen,
        policy_rejected_logps=policy_rejected,
        reference_chosen_logps=reference_chosen,
        reference_rejected_logps=reference_rejected,
        **more,
    )
