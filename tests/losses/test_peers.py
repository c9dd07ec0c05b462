"""The losses against TRL 1.16 and Liger-Kernel 0.8.5: their stored results, and the libraries themselves if installed
(`pip install -e '.[peers]'`). `PYTHONPATH=tests python tests/losses/test_peers.py` prints TRL_AND_LIGER."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from helpers import loss_peers as peers
from helpers.loss_peers import one_by_one
from torch import Tensor

from mmbdhs import losses

# Policy chosen and rejected, reference chosen and rejected: four pairs, in nats.
FIXED = torch.tensor(
    [
        [-12.5, -30.25, -8.0, -51.0],
        [-15.0, -28.5, -8.75, -40.0],
        [-14.0, -29.0, -8.5, -55.5],
        [-13.25, -31.0, -9.5, -38.0],
    ],
    dtype=torch.float64,
)
LENGTHS = torch.tensor([[5, 11, 4, 23], [6, 9, 4, 17]])
BOTH = {"chosen_lengths": LENGTHS[0], "rejected_lengths": LENGTHS[1]}
DESIRABLE = torch.tensor([True, False, False, True])
MISMATCHED = torch.tensor([0.5, 1.75, -0.25, 2.0], dtype=torch.float64)


def pairs(loss: Callable, **settings: object) -> Callable[[Tensor], Tensor]:
    """Our loss as a function of the four vectors stacked, [4, B]."""
    return lambda v: loss(*v, **settings).losses


def trl(loss_type: str, **settings: float) -> Callable[[Tensor], Tensor]:
    return lambda v: one_by_one(lambda *four: peers.trl_dpo(loss_type, *four, **settings), *v)


def trl_with_lengths(loss_type: str, **settings: float) -> Callable[[Tensor], Tensor]:
    def loss(*given: Tensor) -> Tensor:
        return peers.trl_dpo(loss_type, *given[:4], lengths=torch.cat(given[4:]), **settings)

    return lambda v: one_by_one(loss, *v, *LENGTHS)


def liger(loss_type: str, **settings: float) -> Callable[[Tensor], Tensor]:
    return lambda v: peers.liger_dpo(loss_type, *v, **settings)


def kto(v: Tensor) -> Tensor:
    point = losses.kto_reference_point(MISMATCHED, torch.zeros_like(MISMATCHED))
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    return losses.kto_loss(v[0], v[2], DESIRABLE, reference_point=point, **weights).losses


def trl_kto(v: Tensor) -> Tensor:
    def loss(policy: Tensor, reference: Tensor, label: Tensor) -> Tensor:
        weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
        return peers.trl_kto(policy, reference, label, MISMATCHED.mean()[None], **weights)

    return one_by_one(loss, v[0], v[2], DESIRABLE)


def liger_kto(v: Tensor) -> Tensor:
    weights = torch.where(DESIRABLE, MISMATCHED.new_tensor(1.3), MISMATCHED.new_tensor(0.8))
    return weights * peers.liger_kto(v[0], v[2], DESIRABLE, MISMATCHED.mean(), 0.1)


def rloo(v: Tensor) -> Tensor:
    return losses.rloo_loss(v[0], v[2], v[3] + 30, clip_range=0.3)


MEANS = {"chosen_lengths": None, "rejected_lengths": None}
NLL = {"nll_weight": 0.5, "beta": 0.2, "label_smoothing": 0.1}
SIMPO = {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1}
Case = tuple[Callable[[Tensor], Tensor], dict[str, Callable[[Tensor], Tensor]]]
SMOOTH = {"label_smoothing": 0.1}
CASES: dict[str, Case] = {
    "dpo": (pairs(losses.dpo_loss), {"trl": trl("sigmoid"), "liger": liger("sigmoid")}),
    "slic": (pairs(losses.slic_loss), {"trl": trl("hinge"), "liger": liger("hinge")}),
    "ipo": (pairs(losses.ipo_loss, **BOTH), {"trl": trl_with_lengths("ipo")}),
    "robust_dpo": (
        pairs(losses.robust_dpo_loss, label_smoothing=0.1),
        {"trl": trl("robust", **SMOOTH), "liger": liger("robust", **SMOOTH)},
    ),
    "sft": (lambda v: losses.sft_loss(v[0], chosen_lengths=LENGTHS[0]), {"trl": trl_with_lengths("sft")}),
    "kto": (kto, {"trl": trl_kto, "liger": liger_kto}),
    "reward_model": (
        lambda v: losses.reward_model_loss(v[0], v[1], margin=v[2] / 8, centering=0.01).losses,
        {"trl": lambda v: one_by_one(lambda c, r, m: peers.trl_reward(c, r, m, 0.01), v[0], v[1], v[2] / 8)},
    ),
    "slic_hf": (
        lambda v: losses.slic_hf_loss(v[0], v[1], target_logps=v[0] / LENGTHS[0], regularization=0.5).losses,
        {
            "trl": lambda v: one_by_one(
                lambda c, r, n: peers.trl_cpo("hinge", c, r, n, beta=1.0, cpo_alpha=0.5), *v[:2], -v[0] / LENGTHS[0]
            )
        },
    ),
    "cpo": (
        lambda v: losses.cpo_loss(v[0], v[1], chosen_lengths=LENGTHS[0], **NLL).losses,
        {
            "trl": lambda v: one_by_one(
                lambda c, r, n: peers.trl_cpo("sigmoid", c, r, n, cpo_alpha=0.5, beta=0.2, **SMOOTH),
                *v[:2],
                -v[0] / LENGTHS[0],
            )
        },
    ),
    "simpo": (
        lambda v: losses.simpo_loss(v[0], v[1], **BOTH, **SIMPO).losses,
        {
            "trl": lambda v: one_by_one(
                lambda c, r: peers.trl_cpo("simpo", c, r, c, beta=2.0, simpo_gamma=0.5, **SMOOTH), *(v[:2] / LENGTHS)
            )
        },
    ),
    "orpo": (
        lambda v: losses.orpo_loss(v[0] / LENGTHS[0], v[1] / LENGTHS[1], **MEANS, beta=0.3).losses,
        {"trl": lambda v: one_by_one(lambda c, r: peers.trl_orpo(c, r, 0.3), *(v[:2] / LENGTHS))},
    ),
    "rloo": (
        rloo,
        {
            "trl": lambda v: one_by_one(
                lambda *pair: peers.trl_rloo(*pair, 0.3), v[0], v[2].detach(), v[3].detach() + 30
            ),
            "liger": lambda v: peers.liger_policy(v[0], v[2].detach(), v[3].detach() + 30, 0.3),
        },
    ),
    "kl_k3": (lambda v: losses.kl_k3(v[0], v[2]), {"liger": lambda v: peers.liger_k3(v[0], v[2])}),
}
COMPARISONS = [(name, library) for name, (_, libraries) in CASES.items() for library in libraries]
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}
# Stored results have nine digits.
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.mark.parametrize(("name", "library"), COMPARISONS)
def test_agrees_with_what_a_peer_computed(name: str, library: str) -> None:
    torch.testing.assert_close(CASES[name][0](FIXED), FIXED.new_tensor(TRL_AND_LIGER[library, name]), **CLOSE)


def need(library: str) -> None:
    pytest.importorskip(PACKAGES[library], reason=f"{library} is not installed: pip install -e '.[peers]'")


@pytest.mark.parametrize(("name", "library"), COMPARISONS)
def test_agrees_with_an_installed_peer(name: str, library: str) -> None:
    """Values and gradients, at the fixed log-probabilities and at random ones."""
    need(library)
    ours, theirs = CASES[name][0], CASES[name][1][library]
    torch.testing.assert_close(theirs(FIXED), FIXED.new_tensor(TRL_AND_LIGER[library, name]), **CLOSE)
    torch.manual_seed(7)
    for _ in range(3):
        given = (FIXED + 2 * torch.randn_like(FIXED)).clamp(max=-0.5).requires_grad_()
        mine, its = ours(given), theirs(given)
        torch.testing.assert_close(mine, its, **CLOSE)
        (gradient,), (expected,) = torch.autograd.grad(mine.sum(), given), torch.autograd.grad(its.sum(), given)
        torch.testing.assert_close(gradient, expected, **CLOSE)


@pytest.mark.parametrize("name", ["CPO", "SimPO", "ORPO"])
def test_agrees_with_ligers_fused_losses(name: str) -> None:
    """Both start from hidden states, so that Liger itself chooses what it averages over; it computes in float32."""
    need("liger")
    torch.manual_seed(11)
    hidden, weight = torch.randn(2, 7, 8, requires_grad=True), torch.randn(13, 8)
    targets = torch.randint(0, 13, (2, 7))
    targets[0, :2] = targets[1, :4] = -100
    kept = targets >= 0
    logps = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    chosen, rejected = (logps * kept).sum(dim=1)[:, None]
    both = {"chosen_lengths": kept[:1].sum(dim=1), "rejected_lengths": kept[1:].sum(dim=1)}
    ours = {
        "CPO": lambda: losses.cpo_loss(chosen, rejected, beta=0.1, chosen_lengths=both["chosen_lengths"]),
        "SimPO": lambda: losses.simpo_loss(chosen, rejected, beta=0.1, gamma=0.5, **both),
        "ORPO": lambda: losses.orpo_loss(chosen, rejected, beta=0.1, **both),
    }[name]().losses[0]
    extra = {"compute_nll_loss": False} if name == "SimPO" else {}  # Liger adds it by default; the paper has none.
    theirs = peers.liger_fused(name, hidden, weight, targets, beta=0.1, **extra)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (gradient,), (expected,) = torch.autograd.grad(ours, hidden), torch.autograd.grad(theirs, hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# TRL 1.16.0 and Liger-Kernel 0.8.5 under torch 2.13.0, at FIXED.
TRL_AND_LIGER: dict[tuple[str, str], list[float]] = {
    ("trl", "dpo"): [0.543792604, 0.898123264, 0.705725304, 0.420055336],
    ("liger", "dpo"): [0.543792604, 0.898123264, 0.705725304, 0.420055336],
    ("trl", "slic"): [0.675, 1.375, 1.025, 0.35],
    ("liger", "slic"): [0.675, 1.375, 1.025, 0.35],
    ("trl", "ipo"): [19.4334028, 29.0673464, 25.6289062, 21.9651641],
    ("trl", "robust_dpo"): [0.503167604, 0.944998264, 0.708850304, 0.338805336],
    ("liger", "robust_dpo"): [0.503167604, 0.944998264, 0.708850304, 0.338805336],
    ("trl", "sft"): [2.5, 2.75, 2.0, 2.2173913],
    ("trl", "kto"): [0.633753385, 0.355188888, 0.390002083, 0.537397147],
    ("liger", "kto"): [0.633753385, 0.355188888, 0.390002083, 0.537397147],
    ("trl", "reward_model"): [7.57666346, 34.6583001, 2.95683895, 86.8895596],
    ("trl", "slic_hf"): [1.25, 4.125, 1.25, 13.1086957],
    ("trl", "cpo"): [1.77407698, 2.22338216, 1.63595705, 3.19377897],
    ("trl", "simpo"): [0.924076984, 0.573638908, 0.745099035, 0.79124245],
    ("trl", "orpo"): [2.70794417, 2.89918491, 2.17757054, 2.40355053],
    ("trl", "rloo"): [-21.775, 0.7, -26.65, 720.13705],
    ("liger", "rloo"): [-21.775, 0.7, -26.65, 720.13705],
    ("liger", "kl_k3"): [0.72313016, 1.24034296, 0.10653066, 3.511109],
}

TOKEN_MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]).bool()
POLICY = torch.tensor([[-1.2, -0.4, -2.5, -0.9, -3.0], [-0.3, -1.9, -1.0, -0.7, -1.1]], dtype=torch.float64)
OLD = torch.tensor([[-1.0, -0.9, -2.4, -0.9, -1.0], [-0.8, -1.8, -2.0, -1.6, -1.2]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, -0.1, 0.2, 1.0, 0.0], [0.3, 0.0, 0.0, -0.5, 2.0]], dtype=torch.float64)
OLD_VALUES = torch.tensor([[0.5, 0.1, -0.4, 0.9, 2.0], [1.2, 0.3, 5.0, -0.2, 0.4]], dtype=torch.float64)
VALUES = torch.tensor([[0.8, 0.2, -0.1, 0.4, 2.0], [1.1, 0.9, 5.0, -0.6, 0.3]], dtype=torch.float64)

# verl 0.9.1, verl/trainer/ppo/core_algos.py: GAE at γ 0.9, λ 0.8, before and after whitening; the policy loss without
# its dual clip and the value loss, both at a clip range of 0.2; KL estimates of all tokens, the mask ignored.
VERL = {
    "advantages": [[-0.0449312, 0.50704, 1.482, 0.1, 0.0], [-0.3472992, 0.39264, 0.0, 1.212, 1.6]],
    "returns": [[0.4550688, 0.60704, 1.082, 1.0, 0.0], [0.8527008, 0.69264, 0.0, 1.012, 2.0]],
    "whitened": [
        [-0.896543091, -0.144023877, 1.1851689, -0.698953955, 0.0],
        [-1.30877063, -0.299988895, 0.0, 0.817069646, 1.34604191],
    ],
    "policy": [
        [0.7340274, 0.23745523, -1.07238517, 0.698953955, 0.0],
        [2.15779798, 0.271441177, 0.0, -0.980483575, -1.48760637],
    ],
    "value": [[0.0594887664, 0.0828407808, 0.821762, 0.18, 0.0], [0.0305784472, 0.0214990848, 0.0, 1.299272, 1.445]],
    "k1": [[-0.2, 0.5, -0.1, 0.0, -2.0], [0.5, -0.1, 1.0, 0.9, 0.1]],
    "k2": [[0.02, 0.125, 0.005, 0.0, 2.0], [0.125, 0.005, 0.5, 0.405, 0.005]],
    "k3": [
        [0.0214027582, 0.10653066, 0.00517091808, 0.0, 4.3890561],
        [0.10653066, 0.00517091808, 0.367879441, 0.30656966, 0.00483741804],
    ],
    "rloo": [[-0.433333333, 1.16666667, -1.1, 0.366666667], [2.0, 2.0, -2.66666667, -1.33333333]],
}


def test_agrees_with_what_verl_computed() -> None:
    advantages, returns = losses.gae(REWARDS, OLD_VALUES, TOKEN_MASK, gamma=0.9, lam=0.8)
    whitened = losses.whiten(advantages, TOKEN_MASK)
    ppo = losses.ppo_loss(POLICY, OLD, whitened, VALUES, OLD_VALUES, returns, TOKEN_MASK)
    scores = torch.tensor([[0.3, 1.5, -0.2, 0.9], [2.5, 2.5, -1.0, 0.0]], dtype=torch.float64)
    ours = {
        "advantages": advantages,
        "returns": returns,
        "whitened": whitened,
        "policy": ppo.policy_losses,
        "value": ppo.value_losses,
        "k1": losses.kl_k1(POLICY, OLD),
        "k2": losses.kl_k2(POLICY, OLD),
        "k3": losses.kl_k3(POLICY, OLD),
        "rloo": losses.rloo_advantages(scores),
    }
    for name, expected in VERL.items():
        torch.testing.assert_close(ours[name], FIXED.new_tensor(expected), rtol=1e-7, atol=1e-9, msg=name)


def test_agrees_with_what_the_authors_of_mdpo_computed() -> None:
    """github.com/luka-group/mDPO at ec316ce, mdpo_trainer.py."""
    given = losses.mdpo_loss(
        *FIXED,
        policy_corrupted_logps=FIXED[0] - FIXED.new_tensor([1.0, 5.0, 0.5, 9.0]),
        reference_corrupted_logps=FIXED[2] - FIXED.new_tensor([2.0, 3.0, 1.5, 4.0]),
    )
    torch.testing.assert_close(
        given.losses, FIXED.new_tensor([1.90914631, 2.25386117, 2.11858161, 1.38738127]), rtol=1e-7, atol=1e-9
    )


if __name__ == "__main__":
    for name, library in COMPARISONS:
        if find_spec(PACKAGES[library]):
            print(f'    ("{library}", "{name}"): {[float(f"{x:.9g}") for x in CASES[name][1][library](FIXED)]},')
