"""Preference losses with a reference model.

Every loss is written for one `PairLogps`, and `with_reference` lets callers pass its four vectors as four arguments:
`dpo_loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=0.1)`.

Below, r(y) = β log π(y)/π_ref(y) is the reward of a response: r₊ of the chosen one, r₋ of the rejected one. Losses
return these rewards unless their docstring says otherwise.
"""

from __future__ import annotations

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
def mdpo_loss(
    pair: PairLogps,
    *,
    policy_corrupted_logps: Tensor,
    reference_corrupted_logps: Tensor,
    beta: float = 0.1,
    anchor: float = 0.0,
) -> PreferenceLoss:
    """Multimodal DPO, −log σ(r₊ − r₋) − log σ(r₊ − r̃₊) − log σ(r₊ − δ) (arXiv 2406.11839).

    The terms are DPO, the same for a pair of images, and an anchor that pushes the chosen response's reward above δ.

    policy_corrupted_logps, reference_corrupted_logps: float [B], of the chosen response given a corrupted image, which
        in the paper is a random crop; they make r̃₊.
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
