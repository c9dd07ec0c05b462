"""Preference losses with a reference model.

Every loss is written for one `PairLogps`, and `with_reference` lets callers pass its four vectors as four arguments:
`dpo_loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=0.1)`.

Below, r(y) = β log π(y)/π_ref(y) is the reward of a response: r₊ of the chosen one, r₋ of the rejected one. Losses
return these rewards unless their docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks
from mmbdhs.losses.pairs import PairLogps, PreferenceLoss, logistic, per_token, preference, with_reference


@with_reference
def dpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> PreferenceLoss:
    """Direct preference optimisation, −log σ(r₊ − r₋): Eq. 3 of arXiv 2407.02477, from arXiv 2305.18290.

    beta: β, above 0.
    label_smoothing: ε of conservative DPO (Mitchell, "A note on DPO with noisy preferences", 2023), in [0, 0.5):
        −(1 − ε) log σ(r₊ − r₋) − ε log σ(r₋ − r₊). TRL's "sigmoid" does not smooth; its "robust" is robust_dpo_loss.

    Raises ValueError or TypeError, naming the argument, for shapes that differ, numbers that are not finite, beta ≤ 0.
    """
    chosen, rejected = pair.rewards(beta)
    return preference(logistic(chosen - rejected, label_smoothing), chosen, rejected)


@with_reference
def robust_dpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.1) -> PreferenceLoss:
    """Robust DPO, [−(1 − ε) log σ(m) + ε log σ(−m)] / (1 − 2ε) with m = r₊ − r₋ (arXiv 2403.00409).

    If a share ε of the labels is flipped, its expectation is the DPO loss on the clean labels. Unlike the smoothed
    dpo_loss it can be negative.

    beta: β, above 0.
    label_smoothing: ε in [0, 0.5).
    """
    checks.below_half(label_smoothing=label_smoothing)
    chosen, rejected = pair.rewards(beta)
    margins = chosen - rejected
    clean, flipped = F.logsigmoid(margins), F.logsigmoid(-margins)
    losses = (label_smoothing * flipped - (1 - label_smoothing) * clean) / (1 - 2 * label_smoothing)
    return preference(losses, chosen, rejected)


@with_reference
def ipo_loss(
    pair: PairLogps,
    *,
    beta: float = 0.1,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> PreferenceLoss:
    """Identity preference optimisation, (h₊ − h₋ − 1/(2β))² with h = log π(y)/π_ref(y) (arXiv 2310.12036, Eq. 17).

    Without lengths h is the sum over tokens: the equation as printed, also in eric-mitchell's
    direct-preference-optimization. With lengths h is divided by them: the mean per token, as in TRL's "ipo". A β that
    was tuned for one is wrong for the other. The rewards are β h, with the same h.

    beta: β, above 0; the paper's τ.
    chosen_lengths, rejected_lengths: [B], tokens of each response, above 0; both or neither.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = pair.log_ratios({"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths})
    chosen, rejected = per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)
    return preference((chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected)


@with_reference
def slic_loss(pair: PairLogps, *, beta: float = 0.1) -> PreferenceLoss:
    """SLiC's hinge on reference-normalised likelihoods, max(0, 1 − (r₊ − r₋)) (arXiv 2309.06657); TRL's "hinge".

    slic_hf_loss is the original without a reference model.

    beta: β, above 0.
    """
    chosen, rejected = pair.rewards(beta)
    return preference(F.relu(1 - (chosen - rejected)), chosen, rejected)


@with_reference
def gpo_loss(pair: PairLogps, *, link: Callable[[Tensor], Tensor], beta: float = 0.1) -> PreferenceLoss:
    """Generalised preference optimisation, f(r₊ − r₋) with any convex f (arXiv 2402.05749).

    −log σ(m) is DPO, max(0, 1 − m) is SLiC, (m − 1)² at beta = 2τ is 4τ² times IPO, exp(−m) is the exponential loss,
    max(0, 1 − m)² the truncated quadratic loss.

    link: f, from margins m, float [B], to losses [B].
    beta: β, above 0.
    """
    if not callable(link):
        raise TypeError(f"link: needs a callable, got {type(link).__name__}")
    chosen, rejected = pair.rewards(beta)
    losses = link(chosen - rejected)
    checks.same_shape({"policy_chosen_logps": chosen, "link's result": losses})
    return preference(losses, chosen, rejected)


@with_reference
def exo_pair_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> PreferenceLoss:
    """Efficient exact optimisation, KL(q ‖ p) of q = (σ(m), σ(−m)) from p = (1 − ε, ε) with m = r₊ − r₋.

    It is Eq. 16 of arXiv 2402.00856 for two responses.

    beta: β, above 0.
    label_smoothing: ε in (0, 0.5); at 0 the divergence would be infinite.
    """
    checks.above_zero(label_smoothing=label_smoothing)
    checks.below_half(label_smoothing=label_smoothing)
    chosen, rejected = pair.rewards(beta)
    log_chosen, log_rejected = F.logsigmoid(chosen - rejected), F.logsigmoid(rejected - chosen)
    losses = log_chosen.exp() * (log_chosen - math.log1p(-label_smoothing))
    losses = losses + log_rejected.exp() * (log_rejected - math.log(label_smoothing))
    return preference(losses, chosen, rejected)


@with_reference
def nca_pair_loss(pair: PairLogps, *, beta: float = 0.1) -> PreferenceLoss:
    """Noise contrastive alignment of a pair, −log σ(r₊) − ½ log σ(−r₊) − ½ log σ(−r₋) (arXiv 2402.05369).

    beta: β, above 0.
    """
    chosen, rejected = pair.rewards(beta)
    noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return preference(-F.logsigmoid(chosen) - 0.5 * noise, chosen, rejected)


@with_reference
def bco_pair_loss(pair: PairLogps, *, beta: float = 0.1, reward_shift: float = 0.0) -> PreferenceLoss:
    """Binary classifier optimisation, −log σ(r₊ − δ) − log σ(δ − r₋) (arXiv 2404.04656).

    beta: β, above 0.
    reward_shift: δ, in the paper a running mean of both rewards. TRL's and Liger's "bco_pair" have none: δ = 0.
    """
    checks.finite_number(reward_shift=reward_shift)
    chosen, rejected = pair.rewards(beta)
    losses = -F.logsigmoid(chosen - reward_shift) - F.logsigmoid(reward_shift - rejected)
    return preference(losses, chosen, rejected)


@with_reference
def sppo_hard_loss(pair: PairLogps, *, beta: float = 0.1) -> PreferenceLoss:
    """Self-play preference optimisation, (h₊ − 1/(2β))² + (h₋ + 1/(2β))² with h = log π(y)/π_ref(y).

    It is Eq. 4.7 of arXiv 2405.00675 with η = 1/β and win probabilities of 1 and 0. The reference is the policy of the
    round before.

    beta: β, above 0.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = pair.log_ratios()
    losses = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    return preference(losses, beta * chosen, beta * rejected)


@with_reference
def apo_zero_loss(pair: PairLogps, *, beta: float = 0.1) -> PreferenceLoss:
    """Anchored preference optimisation, σ(−r₊) + σ(r₋): raises the chosen and lowers the rejected response.

    It is meant for chosen responses that are better than the model's own (arXiv 2408.06266, Eq. 7).

    beta: β, above 0.
    """
    chosen, rejected = pair.rewards(beta)
    return preference(torch.sigmoid(-chosen) + torch.sigmoid(rejected), chosen, rejected)


@with_reference
def apo_down_loss(pair: PairLogps, *, beta: float = 0.1) -> PreferenceLoss:
    """Anchored preference optimisation, σ(r₊) + σ(r₋ − r₊): lowers both responses, the rejected one more.

    It is meant for chosen responses that are worse than the model's own (arXiv 2408.06266, Eq. 8).

    beta: β, above 0.
    """
    chosen, rejected = pair.rewards(beta)
    return preference(torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen), chosen, rejected)


@with_reference
def discopop_loss(pair: PairLogps, *, beta: float = 0.1, tau: float = 0.05) -> PreferenceLoss:
    """The loss that DiscoPOP found, (1 − w)(−log σ(m)) + w exp(−m) with m = r₊ − r₋ and w = σ(m/τ).

    It is Eq. 5 of arXiv 2406.08414.

    beta: β, above 0.
    tau: τ in (0, 1]; above 1 the loss would grow exponentially with −m.
    """
    checks.above_zero(tau=tau)
    checks.number_in("tau", tau, 0, 1)
    chosen, rejected = pair.rewards(beta)
    margins = chosen - rejected
    exponential = torch.exp(F.logsigmoid(margins / tau) - margins)  # w and exp(−m) apart would make 0 · ∞
    return preference(exponential - torch.sigmoid(-margins / tau) * F.logsigmoid(margins), chosen, rejected)


@with_reference
def aot_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> PreferenceLoss:
    """Alignment via optimal transport of paired data (arXiv 2406.05882).

    The loss pushes the distribution of the policy's margins over the batch above that of the reference's. With
    a = sort(log π(y₊)/π(y₋)) and b = sort(log π_ref(y₊)/π_ref(y₋)), the i-th loss is dpo_loss's of the margin
    β (aᵢ − bᵢ): it belongs to a rank, not to an example. Rewards belong to examples.

    beta: β, above 0.
    label_smoothing: ε in [0, 0.5), as in dpo_loss.
    """
    checks.above_zero(beta=beta)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = pair.checked()
    policy = (policy_chosen - policy_rejected).sort().values
    reference = (reference_chosen - reference_rejected).sort().values
    losses = logistic(beta * (policy - reference), label_smoothing)
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return preference(losses, beta * chosen, beta * rejected)


@with_reference
def aot_unpaired_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> PreferenceLoss:
    """Alignment via optimal transport where chosen and rejected responses may answer different prompts.

    The batch's sorted r₊ are compared with its sorted r₋ (arXiv 2406.05882). The i-th loss is that of the i-th rank.

    beta: β, above 0.
    label_smoothing: ε in [0, 0.5), as in dpo_loss.
    """
    chosen, rejected = pair.rewards(beta)
    losses = logistic(chosen.sort().values - rejected.sort().values, label_smoothing)
    return preference(losses, chosen, rejected)


@with_reference
def mdpo_loss(
    pair: PairLogps,
    *,
    policy_corrupted_logps: Tensor,
    reference_corrupted_logps: Tensor,
    beta: float = 0.1,
    anchor: float = 0.0,
) -> PreferenceLoss:
    """Multimodal DPO, −log σ(r₊ − r₋) − log σ(r₊ − r̃₊) − log σ(r₊ − δ) (arXiv 2406.11839).

    The terms are DPO, the same for a pair of images, and an anchor that keeps the chosen response's reward above δ.

    policy_corrupted_logps, reference_corrupted_logps: float [B], of the chosen response given the corrupted image
        (cropped, or with hidden tokens); they make r̃₊.
    beta: β, above 0.
    anchor: δ, in units of reward; 0 in the paper.
    """
    checks.above_zero(beta=beta)
    checks.finite_number(anchor=anchor)
    corrupted_logps = {
        "policy_corrupted_logps": policy_corrupted_logps,
        "reference_corrupted_logps": reference_corrupted_logps,
    }
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, policy_corrupted, reference_corrupted = (
        pair.checked(corrupted_logps)
    )
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    corrupted = beta * (policy_corrupted - reference_corrupted)
    losses = logistic(chosen - rejected) + logistic(chosen - corrupted) + logistic(chosen - anchor)
    return preference(losses, chosen, rejected)
