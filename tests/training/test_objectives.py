"""Objectives pass the right log-probabilities to the right losses."""

from __future__ import annotations

import math

import pytest
import torch

from mmbdhs.logprobs.responses import ResponseLogps
from mmbdhs.losses import dpo_loss, ipo_loss, simpo_loss, slic_loss
from mmbdhs.training.objectives import needs_reference, pairwise, supervised

# One example, three responses of 2, 1 and 4 tokens with log p = −2, −3, −8; under the reference −4, −3, −6.
MASK = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.bool)
POLICY = ResponseLogps(torch.tensor([[[-1.0, -1, 0, 0], [-3, 0, 0, 0], [-2, -2, -2, -2]]]), MASK)
REFERENCE = torch.tensor([[-4.0, -3.0, -6.0]])


def test_each_rejected_response_is_compared_with_the_chosen_one() -> None:
    """DPO's rewards at β = 0.5 are 1, 0 and −1: margins 1 and 2."""
    result = pairwise(dpo_loss, weights=(0.25, 0.75), beta=0.5)(POLICY, REFERENCE)
    first, second = math.log1p(math.exp(-1)), math.log1p(math.exp(-2))
    assert result.losses.tolist() == pytest.approx([0.25 * first + 0.75 * second])
    assert result.rejected_rewards.tolist() == pytest.approx([-0.75])
    equally = pairwise(dpo_loss, beta=0.5)(POLICY, REFERENCE)
    assert equally.losses.tolist() == pytest.approx([(first + second) / 2])
    assert pairwise(slic_loss, beta=0.5)(POLICY, REFERENCE).losses.tolist() == [0.0]


def test_lengths_go_to_losses_that_require_them_and_to_others_on_request() -> None:
    """Log-ratios are 2, 0 and −2; per token 1, 0 and −0.5."""
    sums = pairwise(ipo_loss, beta=0.5)(POLICY, REFERENCE)
    assert sums.losses.tolist() == pytest.approx([((2 - 0 - 1) ** 2 + (2 + 2 - 1) ** 2) / 2])
    means = pairwise(ipo_loss, per_token=True, beta=0.5)(POLICY, REFERENCE)
    assert means.losses.tolist() == pytest.approx([((1 - 0 - 1) ** 2 + (1 + 0.5 - 1) ** 2) / 2])
    simpo = pairwise(simpo_loss, beta=2.0, gamma=1.0)
    assert not needs_reference(simpo)
    margins = [2 * (-1 + 3) - 1, 2 * (-1 + 2) - 1]
    assert simpo(POLICY, None).losses.tolist() == pytest.approx([sum(math.log1p(math.exp(-m)) for m in margins) / 2])


def test_supervised_is_the_mean_per_token_without_rewards() -> None:
    result = supervised()(POLICY, None)
    assert result.losses.tolist() == [1.0]
    assert result.chosen_rewards.isnan().all() and result.rejected_rewards.isnan().all()
    assert not needs_reference(supervised())


def test_the_likelihood_of_the_chosen_response_is_added() -> None:
    """Its tokens have log p = −1 on average, so half of 1 is added; TRL adds rpo_alpha times the same mean."""
    plain, anchored = (pairwise(dpo_loss, beta=0.5, sft_weight=weight)(POLICY, REFERENCE) for weight in (0.0, 0.5))
    assert (anchored.losses - plain.losses).tolist() == pytest.approx([0.5])
    assert anchored[1:] == plain[1:]
    with pytest.raises(ValueError, match="sft_weight: needs a finite number of at least 0, got -1"):
        pairwise(dpo_loss, sft_weight=-1)


def test_any_callable_is_an_objective_and_gets_a_reference() -> None:
    assert needs_reference(lambda policy, reference: dpo_loss(*policy.sums.T[:2], *reference.T[:2]))


def test_settings_are_checked_before_a_run() -> None:
    with pytest.raises(TypeError, match="'betta'"):
        pairwise(dpo_loss, betta=0.1)
    with pytest.raises(ValueError, match="per_token: needs a loss that takes lengths, got dpo_loss"):
        pairwise(dpo_loss, per_token=True)
