"""Every loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmbdhs import losses

# Two pairs, in nats. With h = log π/π_ref: h₊ = 2 and −1, h₋ = −1 and 3. At β = ½, r₊ = 1 and −½, r₋ = −½ and 3/2, so
# the margins r₊ − r₋ are 3/2 and −2.
POLICY_CHOSEN, POLICY_REJECTED = torch.tensor([-10.0, -7.0]), torch.tensor([-14.0, -6.0])
REFERENCE_CHOSEN, REFERENCE_REJECTED = torch.tensor([-12.0, -6.0]), torch.tensor([-13.0, -9.0])
FOUR = (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
# Means per token: −2 and −1 of the chosen, −3½ and −½ of the rejected.
LENGTHS = {"chosen_lengths": torch.tensor([5, 7]), "rejected_lengths": torch.tensor([4, 12])}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def near(tensor: Tensor, expected: list) -> None:
    torch.testing.assert_close(tensor, torch.tensor(expected), rtol=2e-6, atol=1e-6)


WITH_REFERENCE = {
    # log(1 + e^-1.5) = 0.201413, log(1 + e^2) = 2.126928
    "dpo": (losses.dpo_loss, {}, [0.201413, 2.126928]),
    # 0.9 · 0.201413 + 0.1 · 1.701413, 0.9 · 2.126928 + 0.1 · 0.126928
    "conservative dpo": (losses.dpo_loss, {"label_smoothing": 0.1}, [0.351413, 1.926928]),
    # (0.9 · 0.201413 − 0.1 · 1.701413) / 0.8, (0.9 · 2.126928 − 0.1 · 0.126928) / 0.8
    "robust dpo": (losses.robust_dpo_loss, {"label_smoothing": 0.1}, [0.013913, 2.376928]),
    # (3 − 1)², (−4 − 1)²
    "ipo, sums": (losses.ipo_loss, {}, [4.0, 25.0]),
    # h₊ = 2/2 and −1/1, h₋ = −1/4 and 3/2: (1.25 − 1)², (−2.5 − 1)²
    "ipo, means": (
        losses.ipo_loss,
        {"chosen_lengths": torch.tensor([2, 1]), "rejected_lengths": torch.tensor([4, 2])},
        [0.0625, 12.25],
    ),
    "slic": (losses.slic_loss, {}, [0.0, 3.0]),
    # r̃₊ = ½ (−13 + 12) and ½ (−8 + 6), so r₊ − r̃₊ = 3/2 and ½; r₊ − ¼ = ¾ and −¾
    "mdpo": (
        losses.mdpo_loss,
        {
            "policy_corrupted_logps": torch.tensor([-13.0, -8.0]),
            "reference_corrupted_logps": torch.tensor([-12.0, -6.0]),
            "anchor": 0.25,
        },
        [2 * 0.201413 + minus_log_sigmoid(0.75), 2.126928 + minus_log_sigmoid(0.5) + minus_log_sigmoid(-0.75)],
    ),
}


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_losses_with_a_reference(name: str) -> None:
    loss, settings, expected = WITH_REFERENCE[name]
    given = loss(*FOUR, beta=0.5, **settings)
    near(given.losses, expected)
    if name == "ipo, means":
        near(given.chosen_rewards, [0.5, -0.5])
        near(given.rejected_rewards, [-0.125, 0.75])
    else:
        near(given.chosen_rewards, [1.0, -0.5])
        near(given.rejected_rewards, [-0.5, 1.5])


def test_slic_hf() -> None:
    # max(0, 1 + 10 − 14) + ½ · 10, max(0, 1 + 7 − 6) + ½ · 8
    target = torch.tensor([-10.0, -8.0])
    given = losses.slic_hf_loss(POLICY_CHOSEN, POLICY_REJECTED, target_logps=target, delta=1.0, regularization=0.5)
    near(given.losses, [5.0, 6.0])
    near(given.chosen_rewards, [-10.0, -7.0])


def test_simpo() -> None:
    # 2 (−2 + 3.5) − ½ = 2.5, 2 (−1 + ½) − ½ = −1.5
    given = losses.simpo_loss(POLICY_CHOSEN, POLICY_REJECTED, **LENGTHS, beta=2.0, gamma=0.5)
    near(given.losses, [minus_log_sigmoid(2.5), minus_log_sigmoid(-1.5)])
    near(given.chosen_rewards, [-4.0, -2.0])
    near(given.rejected_rewards, [-7.0, -1.0])


def test_orpo() -> None:
    # odds of p = e^-2, e^-3.5, e^-1, e^-½ are 1/(e² − 1) …, and −log σ(log ratio) is log(1 + 1/ratio)
    first = 2 + 0.1 * math.log(1 + (math.exp(2) - 1) / (math.exp(3.5) - 1))
    second = 1 + 0.1 * math.log(1 + (math.exp(1) - 1) / (math.exp(0.5) - 1))
    given = losses.orpo_loss(POLICY_CHOSEN, POLICY_REJECTED, **LENGTHS, beta=0.1)
    near(given.losses, [first, second])
    near(given.chosen_rewards, [-0.2, -0.1])
    near(given.rejected_rewards, [-0.35, -0.05])


def test_cpo() -> None:
    given = losses.cpo_loss(POLICY_CHOSEN, POLICY_REJECTED, beta=0.5, nll_weight=0.1)
    near(given.losses, [minus_log_sigmoid(2) + 1.0, minus_log_sigmoid(-0.5) + 0.7])
    near(given.chosen_rewards, [-5.0, -3.5])
    near(given.rejected_rewards, [-7.0, -3.0])
    per_token = losses.cpo_loss(
        POLICY_CHOSEN, POLICY_REJECTED, beta=0.5, nll_weight=0.1, chosen_lengths=LENGTHS["chosen_lengths"]
    )
    near(per_token.losses, [minus_log_sigmoid(2) + 0.2, minus_log_sigmoid(-0.5) + 0.1])


def test_sft() -> None:
    near(losses.sft_loss(POLICY_CHOSEN, chosen_lengths=LENGTHS["chosen_lengths"]), [2.0, 1.0])
    near(losses.sft_loss(POLICY_CHOSEN, chosen_lengths=None), [10.0, 7.0])


def test_reward_model() -> None:
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([-0.5, 1.5])
    near(losses.reward_model_loss(chosen, rejected).losses, [0.201413, 2.126928])
    margin = torch.tensor([0.5, 0.0])
    # −log σ(1.5 − 0.5) + 0.1 · 0.25, −log σ(−2) + 0.1 · 1
    given = losses.reward_model_loss(chosen, rejected, margin=margin, centering=0.1)
    near(given.losses, [minus_log_sigmoid(1) + 0.025, 2.126928 + 0.1])
    assert torch.equal(given.chosen_rewards, chosen)


def test_kto() -> None:
    # r = ½ · (2, −1, 3), β z₀ = ½: 2 σ(½ − 1), 1.5 σ(−½ − ½), 1.5 σ(3/2 − ½)
    given = losses.kto_loss(
        torch.tensor([-10.0, -14.0, -6.0]),
        torch.tensor([-12.0, -13.0, -9.0]),
        torch.tensor([True, False, False]),
        reference_point=torch.tensor(1.0),
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=1.5,
    )
    near(given.losses, [2 * sigmoid(-0.5), 1.5 * sigmoid(-1), 1.5 * sigmoid(1)])
    near(given.rewards, [1.0, -0.5, 1.5])
    near(losses.kto_reference_point(torch.tensor([-10.0, -14.0]), torch.tensor([-12.0, -13.0])), 0.5)
    near(losses.kto_reference_point(torch.tensor([-12.0, -13.0]), torch.tensor([-10.0, -14.0])), 0.0)


def test_averaged_and_mixed() -> None:
    first, second = losses.dpo_loss(*FOUR, beta=0.5), losses.slic_loss(*FOUR, beta=1.0)
    averaged = losses.averaged_loss([first, second], weights=(0.25, 0.75))
    # slic at β = 1: 0 and 1 + 4; rewards of dpo (1, −½) and of slic (2, −1)
    near(averaged.losses, [0.25 * 0.201413, 0.25 * 2.126928 + 0.75 * 5])
    near(averaged.chosen_rewards, [1.75, -0.875])
    mixed = losses.mixed_loss(first, second, draws=torch.tensor([True, False]))
    near(mixed.losses, [0.201413, 5.0])
    near(mixed.rejected_rewards, [-0.5, 3.0])
    as_numbers = losses.mixed_loss(first, second, draws=torch.tensor([1.0, 0.0]))
    assert torch.equal(as_numbers.losses, mixed.losses)


def test_rloo() -> None:
    # 1 − (2 + 6)/2, 2 − (1 + 6)/2, 6 − (1 + 2)/2
    near(losses.rloo_advantages(torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])), [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    # ratios e^0.1 within 1 ± 0.2, e^½ clipped for A > 0 alone, e^-1 clipped for A < 0 alone
    policy = torch.tensor([-9.9, -9.5, -9.5, -11.0, -11.0], requires_grad=True)
    given = losses.rloo_loss(policy, torch.full((5,), -10.0), torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0]))
    near(given, [-2 * math.exp(0.1), -1.2, math.exp(0.5), -math.exp(-1), 0.8])
    given.sum().backward()
    near(policy.grad, [-2 * math.exp(0.1), 0.0, math.exp(0.5), -math.exp(-1), 0.0])


def test_whiten() -> None:
    # mean 2, variance (1 + 1) / 1
    values, mask = torch.tensor([[1.0, 3.0, math.nan]]), torch.tensor([[True, True, False]])
    near(losses.whiten(values, mask), [[-1 / math.sqrt(2), 1 / math.sqrt(2), 0.0]])


def test_gae() -> None:
    # δ = −0.1, −0.1, 0.7; Â₂ = 0.7, Â₁ = −0.1 + ½ · 0.7, Â₀ = −0.1 + ½ · 0.25. The second row has them around a hole.
    rewards = torch.tensor([[0.0, 0.0, 1.0, 9.0, 9.0], [0.0, 9.0, 0.0, 1.0, math.inf]])
    values = torch.tensor([[0.5, 0.4, 0.3, 9.0, 9.0], [0.5, 9.0, 0.4, 0.3, math.nan]])
    mask = torch.tensor([[True, True, True, False, False], [True, False, True, True, False]])
    given = losses.gae(rewards, values, mask, gamma=1.0, lam=0.5)
    near(given.advantages, [[0.025, 0.25, 0.7, 0.0, 0.0], [0.025, 0.0, 0.25, 0.7, 0.0]])
    near(given.returns, [[0.525, 0.65, 1.0, 0.0, 0.0], [0.525, 0.0, 0.65, 1.0, 0.0]])
    # γ = ½, λ = 1: δ = ½ · 0.4 − 0.5 = −0.3, ½ · 0.3 − 0.4 = −0.25, 0.7; Â = −0.3 + ½ · 0.1, −0.25 + ½ · 0.7, 0.7
    discounted = losses.gae(rewards[:1], values[:1], mask[:1], gamma=0.5, lam=1.0)
    near(discounted.advantages, [[-0.25, 0.1, 0.7, 0.0, 0.0]])


def test_ppo() -> None:
    mask = torch.tensor([[True, True, True, False]])
    policy = torch.tensor([[-0.9, -0.5, -2.0, math.nan]])
    given = losses.ppo_loss(
        policy,
        torch.tensor([[-1.0, -1.0, -1.0, math.nan]]),
        torch.tensor([[2.0, 1.0, 1.0, 5.0]]),
        torch.tensor([[1.0, 2.0, 0.1, 7.0]]),
        torch.tensor([[0.9, 1.0, 0.0, 7.0]]),
        torch.tensor([[2.0, 2.0, 0.0, 0.0]]),
        mask,
        value_weight=0.5,
    )
    policy_losses = [-2 * math.exp(0.1), -1.2, -math.exp(-1), 0.0]
    # ½ (1 − 2)²; 2 is clipped to 1.2, and ½ · 0.8² is worse than 0; ½ · 0.1²
    value_losses = [0.5, 0.32, 0.005, 0.0]
    near(given.policy_losses, [policy_losses])
    near(given.value_losses, [value_losses])
    near(given.losses, [[p + 0.5 * v for p, v in zip(policy_losses, value_losses, strict=True)]])
    assert given.policy_clipped.tolist() == given.value_clipped.tolist() == [[False, True, False, False]]


def test_kl_estimators() -> None:
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    near(losses.kl_k1(policy, reference), [[0.5, -1.0]])
    near(losses.kl_k2(policy, reference), [[0.125, 0.5]])
    near(losses.kl_k3(policy, reference), [[math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1]])
