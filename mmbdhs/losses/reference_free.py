"""Losses without a reference model: of pairs, of chosen responses alone, and of a reward model's scores.

Log-probabilities are the policy's, in nats, float [B], summed over the tokens of the response. Where a loss needs the
mean per token, `chosen_lengths` and `rejected_lengths` have to be passed: tensors to divide by, or None if the
log-probabilities are means already.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks
from mmbdhs.losses.pairs import PreferenceLoss, logistic, per_token, preference


def slic_hf_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    target_logps: Tensor,
    regularization: float,
    delta: float = 1.0,
) -> PreferenceLoss:
    """SLiC-HF, max(0, δ − log π(y₊) + log π(y₋)) − λ log π(y_sft) (arXiv 2305.10425, Eq. 1).

    The rewards are the log-probabilities.

    policy_chosen_logps, policy_rejected_logps: float [B], sums.
    target_logps: float [B], of the SFT response to the same prompt; the chosen response's may be used instead.
    regularization: λ, at least 0.
    delta: δ, above 0, in nats of whole sequences.
    """
    checks.above_zero(delta=delta)
    checks.at_least_zero(regularization=regularization)
    chosen, rejected, target = checks.sequences(
        {
            "policy_chosen_logps": policy_chosen_logps,
            "policy_rejected_logps": policy_rejected_logps,
            "target_logps": target_logps,
        }
    )
    return preference(F.relu(delta - chosen + rejected) - regularization * target, chosen, rejected)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """SimPO, −log σ(r₊ − r₋ − γ) with r = β log π(y) / |y| (arXiv 2405.14734, Eq. 6).

    policy_chosen_logps, policy_rejected_logps: float [B], sums, or means if lengths are None.
    chosen_lengths, rejected_lengths: [B], tokens of each response, above 0, or None for both.
    beta: β, above 0.
    gamma: γ of the equation, at least 0, in units of reward: TRL's simpo_gamma, Liger's gamma. The authors' repository
        takes γ/β (gamma_beta_ratio). Liger's fused loss adds an SFT term by default.
    label_smoothing: ε in [0, 0.5), as in dpo_loss; the paper has none.
    """
    checks.above_zero(beta=beta)
    checks.at_least_zero(gamma=gamma)
    chosen, rejected = _pair(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths)
    chosen, rejected = beta * chosen, beta * rejected
    return preference(logistic(chosen - rejected - gamma, label_smoothing), chosen, rejected)


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
    beta: float = 0.1,
) -> PreferenceLoss:
    """ORPO, −ℓ₊ − β log σ(logit e^ℓ₊ − logit e^ℓ₋) with ℓ = log π(y) / |y| (arXiv 2403.07691, Eq. 6-7).

    The terms are SFT and the log odds ratio. The SFT term is each example's mean per token; TRL and Liger average it
    over the tokens of the batch, TRL over the prompt's too. The rewards are β ℓ, as theirs.

    policy_chosen_logps, policy_rejected_logps: float [B], at most 0: sums, or means if lengths are None. A mean so near
        0 that 1 − e^ℓ would round to 0 counts as minus the machine epsilon.
    chosen_lengths, rejected_lengths: [B], tokens of each response, above 0, or None for both.
    beta: the paper's λ, above 0; TRL and Liger call it beta too.
    """
    checks.above_zero(beta=beta)
    chosen, rejected = _pair(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, at_most_zero=True
    )
    losses = -chosen + beta * logistic(_logit_exp(chosen) - _logit_exp(rejected))
    return preference(losses, beta * chosen, beta * rejected)


def cpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 1.0,
    chosen_lengths: Tensor | None = None,
) -> PreferenceLoss:
    """Contrastive preference optimisation, −log σ(β log π(y₊) − β log π(y₋)) − w log π(y₊) (arXiv 2401.08417).

    The rewards are β log π(y).

    policy_chosen_logps, policy_rejected_logps: float [B], sums.
    beta: β, above 0.
    label_smoothing: ε in [0, 0.5), as in dpo_loss.
    nll_weight: w, at least 0; TRL's cpo_alpha.
    chosen_lengths: [B], tokens of the chosen responses, which make the second term alone a mean per token. None is the
        paper's equation, a sum. TRL and Liger average over the tokens of the batch; for a batch of one example that
        equals this loss with lengths.
    """
    checks.above_zero(beta=beta)
    checks.at_least_zero(nll_weight=nll_weight)
    chosen, rejected = checks.sequences(
        {"policy_chosen_logps": policy_chosen_logps, "policy_rejected_logps": policy_rejected_logps},
        {"chosen_lengths": chosen_lengths},
    )
    losses = logistic(beta * (chosen - rejected), label_smoothing) - nll_weight * per_token(chosen, chosen_lengths)
    return preference(losses, beta * chosen, beta * rejected)


def sft_loss(policy_chosen_logps: Tensor, *, chosen_lengths: Tensor | None) -> Tensor:
    """Supervised fine-tuning, −log π(y₊) / |y₊|, [B]: the negative log-likelihood per token of chosen responses.

    TRL's "sft" is the mean over the tokens of the batch, (losses * lengths).sum() / lengths.sum().

    policy_chosen_logps: float [B], sums, or means if lengths are None.
    chosen_lengths: [B], tokens of each response, above 0, or None.
    """
    (chosen,) = checks.sequences({"policy_chosen_logps": policy_chosen_logps}, {"chosen_lengths": chosen_lengths})
    return -per_token(chosen, chosen_lengths)


def reward_model_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, *, margin: Tensor | None = None, centering: float = 0.0
) -> PreferenceLoss:
    """The loss of a reward model, −log σ(r₊ − r₋ − m) + c (r₊ + r₋)²: Eq. 1 of arXiv 2407.02477.

    chosen_rewards, rejected_rewards: float [B], the reward model's scores r₊ and r₋.
    margin: m, float [B], by how much the chosen response is better (arXiv 2307.09288, Eq. 2); None for 0.
    centering: c, at least 0, pulls the mean reward to 0 (arXiv 2312.09244); TRL's center_rewards_coefficient.
    """
    checks.at_least_zero(centering=centering)
    scores = {"chosen_rewards": chosen_rewards, "rejected_rewards": rejected_rewards}
    chosen, rejected, *margins = checks.sequences(scores if margin is None else {**scores, "margin": margin})
    difference = chosen - rejected - margins[0] if margins else chosen - rejected
    return preference(logistic(difference) + centering * (chosen + rejected).square(), chosen, rejected)


def _pair(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
    at_most_zero: bool = False,
) -> tuple[Tensor, Tensor]:
    """The mean log-probabilities per token of the chosen and of the rejected responses."""
    chosen, rejected = checks.sequences(
        {"policy_chosen_logps": policy_chosen_logps, "policy_rejected_logps": policy_rejected_logps},
        {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths},
        at_most_zero=at_most_zero,
    )
    return per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)


def _logit_exp(log_probability: Tensor) -> Tensor:
    """Compute log p − log(1 − p) from log p."""
    below_one = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))
