"""What all losses have in common: gradients, extremes, half precision, errors, symmetries."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmbdhs import losses
from mmbdhs.losses.pairs import PairLogps

BATCH = 4
LENGTHS = torch.tensor([3, 5, 2, 7])
BOTH_LENGTHS = {"chosen_lengths": LENGTHS, "rejected_lengths": LENGTHS.flip(0)}
DESIRABLE = torch.tensor([True, False, False, True])
MASK = torch.tensor([[True, True, False], [True, True, True]])


WITH_REFERENCE: dict[str, Callable] = {
    "dpo": losses.dpo_loss,
    "cdpo": lambda *v, **k: losses.dpo_loss(*v, label_smoothing=0.2, **k),
    "robust_dpo": losses.robust_dpo_loss,
    "ipo": losses.ipo_loss,
    "ipo_mean": lambda *v, **k: losses.ipo_loss(*v, **BOTH_LENGTHS, **k),
    "slic": losses.slic_loss,
    "mdpo": lambda *v, **k: losses.mdpo_loss(
        *v, policy_corrupted_logps=v[0].flip(0), reference_corrupted_logps=v[2].flip(0), **k
    ),
    "kto": lambda *v, **k: losses.kto_loss(v[0], v[2], DESIRABLE, reference_point=torch.tensor(0.5), **k),
}
WITHOUT_REFERENCE: dict[str, Callable] = {
    "slic_hf": lambda p, q, beta: losses.slic_hf_loss(p, q, target_logps=p, regularization=beta),
    "simpo": lambda p, q, beta: losses.simpo_loss(p, q, **BOTH_LENGTHS, beta=beta),
    "orpo": lambda p, q, beta: losses.orpo_loss(p, q, **BOTH_LENGTHS, beta=beta),
    "cpo": lambda p, q, beta: losses.cpo_loss(p, q, beta=beta, chosen_lengths=LENGTHS),
    "sft": lambda p, q, beta: (losses.sft_loss(p, chosen_lengths=LENGTHS),),
    "reward_model": lambda p, q, beta: losses.reward_model_loss(p, q, margin=LENGTHS / 8, centering=beta),
}
ALL = {
    **{name: lambda *v, loss=loss: loss(*v, beta=0.7)[0] for name, loss in WITH_REFERENCE.items()},
    **{name: lambda *v, loss=loss: loss(*v[:2], beta=0.7)[0] for name, loss in WITHOUT_REFERENCE.items()},
    "averaged": lambda *v: losses.averaged_loss([losses.dpo_loss(*v), losses.slic_loss(*v)], weights=[0.3, 0.7]).losses,
    "mixed": lambda *v: losses.mixed_loss(losses.dpo_loss(*v), losses.ipo_loss(*v), draws=DESIRABLE).losses,
    "rloo": lambda *v: losses.rloo_loss(v[0], v[2], torch.tensor([1.0, -1.0, 2.0, -0.5]).to(v[0])),
    "kl_k1": lambda *v: losses.kl_k1(v[0], v[2]),
    "kl_k2": lambda *v: losses.kl_k2(v[0], v[2]),
    "kl_k3": lambda *v: losses.kl_k3(v[0], v[2]),
}


def four(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Four vectors of log-probabilities, far from kinks and ties."""
    generator = torch.Generator().manual_seed(5)
    drawn = -scale * (0.2 + 3 * torch.rand(4, BATCH, generator=generator, dtype=torch.float64))
    return [vector.to(dtype).requires_grad_() for vector in drawn]


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str) -> None:
    reached = four()[: 2 if name in WITHOUT_REFERENCE else 4]
    fixed = [vector.detach() for vector in four()[len(reached) :]]
    if name == "rloo":  # Its old log-probabilities are constants on purpose.
        assert torch.autograd.gradcheck(
            lambda policy: ALL[name](policy, *fixed, policy, reached[2].detach()), reached[0]
        )
        return
    assert torch.autograd.gradcheck(lambda *vectors: ALL[name](*vectors, *fixed), reached)


def test_gradients_per_token() -> None:
    torch.manual_seed(3)
    policy, old, values, old_values, rewards = (torch.randn(2, 3, dtype=torch.float64) for _ in range(5))
    advantages, returns = losses.gae(rewards, old_values, MASK)

    def ppo(policy: Tensor, values: Tensor) -> Tensor:
        given = losses.ppo_loss(policy, old, losses.whiten(advantages, MASK), values, old_values, returns, MASK)
        return given.losses

    assert torch.autograd.gradcheck(ppo, (policy.requires_grad_(), values.requires_grad_()))
    assert torch.autograd.gradcheck(lambda x: losses.whiten(x, MASK), policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, 1e6])
@pytest.mark.parametrize("name", ALL)
def test_huge_margins(name: str, size: float, dtype: torch.dtype) -> None:
    """Losses and gradients are finite for every sign of both log-ratios."""
    zero, far = 0.0, -size
    rows = [[zero, zero, far, far], [far, zero, far, zero], [far, far, zero, zero], [zero, far, zero, far]]
    vectors = [torch.tensor(row, dtype=dtype, requires_grad=True) for row in rows]
    result = ALL[name](*vectors)
    gradients = torch.autograd.grad(result.sum(), vectors, allow_unused=True)
    assert result.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_huge_ratios_keep_their_gradient() -> None:
    policy = torch.tensor([30.0, 1e6, -1e6], requires_grad=True)
    falling = losses.rloo_loss(policy, torch.zeros(3), -torch.ones(3))
    falling.sum().backward()
    assert falling[1] > falling[0] > 0 and (policy.grad[:2] > 0).all() and policy.grad[2] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = four(scale=50.0, dtype=dtype)
    result = ALL[name](*half)
    assert result.dtype == torch.float32
    assert torch.equal(result, ALL[name](*(vector.detach().float() for vector in half)))
    gradients = torch.autograd.grad(result.sum(), half, allow_unused=True)
    assert all(gradient.dtype == dtype for gradient in gradients if gradient is not None)
    assert ALL[name](*four()).dtype == torch.float64


def test_signatures_show_the_four_vectors() -> None:
    for loss in (losses.dpo_loss, losses.mdpo_loss):
        first = [*inspect.signature(loss).parameters.values()][:4]
        assert [parameter.name for parameter in first] == list(PairLogps._fields)
        with pytest.raises(TypeError, match="takes 4 positional arguments but 5 were given"):
            loss(*four(), 0.1)
    by_name = dict(zip(PairLogps._fields, four(), strict=True))
    assert torch.equal(losses.dpo_loss(**by_name).losses, losses.dpo_loss(*four()).losses)


def test_rewards_are_detached() -> None:
    for loss in WITH_REFERENCE.values():
        given = loss(*four(), beta=0.7)
        assert given[0].requires_grad and not any(rewards.requires_grad for rewards in given[1:])


def test_results_of_the_old_policy_are_constants() -> None:
    six = [tensor.requires_grad_() for tensor in torch.randn(6, 2, 3)]
    ppo = losses.ppo_loss(*six, MASK, clip_range=9.0, value_clip_range=9.0)
    reached = [gradient is not None for gradient in torch.autograd.grad(ppo.losses.sum(), six, allow_unused=True)]
    assert reached == [True, False, False, True, False, False]
    rloo = losses.rloo_loss(*(tensor[0] for tensor in six[:3]))
    assert [g is not None for g in torch.autograd.grad(rloo.sum(), six[:3], allow_unused=True)] == [True, False, False]
    assert not any(result.requires_grad for result in losses.gae(six[0], six[1], MASK))
    assert not losses.rloo_advantages(six[0]).requires_grad
    assert not losses.kto_reference_point(six[0][0], six[1][0]).requires_grad


def test_small_divergences_keep_their_digits() -> None:
    policy = torch.tensor([-1.0, -1.0, -1.0])
    reference = policy + torch.tensor([1e-3, -1e-3, 2e-4])
    exact = losses.kl_k3(policy.double(), reference.double())
    torch.testing.assert_close(losses.kl_k3(policy, reference).double(), exact, rtol=1e-3, atol=0)


WRONG_TENSORS = {
    "shape": (lambda v: v[:3], ValueError, r"needs the shape \[4\] of policy_chosen_logps, got \[3\]"),
    "dimensions": (
        lambda v: v[:, None].expand(4, 4),
        ValueError,
        "policy_rejected_logps: needs 1 dimension, got shape",
    ),
    "nan": (
        lambda v: v.index_fill(0, torch.tensor([2]), math.nan),
        ValueError,
        r"needs finite numbers, got nan at \[2\]",
    ),
    "infinite": (lambda v: v / 0, ValueError, r"needs finite numbers, got -inf at \[0\]"),
    "integers": (lambda v: v.long(), TypeError, "needs a floating-point tensor, got torch.int64"),
    "list": (lambda v: v.tolist(), TypeError, "needs a tensor, got list"),
    "device": (lambda v: v.to("meta"), ValueError, "needs the device cpu of policy_chosen_logps, got meta"),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_wrong_tensors_are_named(kind: str) -> None:
    spoil, error, message = WRONG_TENSORS[kind]
    chosen, rejected, *reference = (vector.detach() for vector in four())
    for loss in (losses.dpo_loss, losses.ipo_loss):
        with pytest.raises(error, match=f"^policy_rejected_logps: .*{message.split(': ')[-1]}"):
            loss(chosen, spoil(rejected), *reference)
    with pytest.raises(error, match=r"^policy_rejected_logps: "):
        losses.cpo_loss(chosen, spoil(rejected))


def refused(message: str, error: type[Exception], call: Callable, *arguments: object, **settings: object) -> None:
    with pytest.raises(error, match=message):
        call(*arguments, **settings)


@pytest.mark.parametrize(
    "name", [*WITH_REFERENCE, *sorted(WITHOUT_REFERENCE.keys() - {"slic_hf", "sft", "reward_model"})]
)
def test_beta_has_to_be_positive(name: str) -> None:
    loss = (WITH_REFERENCE | WITHOUT_REFERENCE)[name]
    for beta in (0, -0.1, math.nan, math.inf, True, "0.1"):
        refused("^beta: needs a finite number above 0, got ", ValueError, loss, *four()[: _arity(name)], beta=beta)


def _arity(name: str) -> int:
    return 4 if name in WITH_REFERENCE else 2


def test_wrong_settings_are_named() -> None:
    v = [vector.detach() for vector in four()]
    for loss in (losses.dpo_loss, losses.robust_dpo_loss):
        refused(r"^label_smoothing: needs a number in \[0, 0.5\), got 0.5", ValueError, loss, *v, label_smoothing=0.5)
        refused("^label_smoothing: needs a ", ValueError, loss, *v, label_smoothing=-0.1)
    corrupted = {"policy_corrupted_logps": v[0], "reference_corrupted_logps": v[2]}
    for anchor in (math.nan, math.inf, -math.inf, None):
        refused("^anchor: needs a finite", ValueError, losses.mdpo_loss, *v, **corrupted, anchor=anchor)
    for weight in (-0.1, math.nan, math.inf, False):
        refused("^nll_weight: needs a finite", ValueError, losses.cpo_loss, *v[:2], nll_weight=weight)
    refused("^gamma: needs a finite number of at", ValueError, losses.simpo_loss, *v[:2], **BOTH_LENGTHS, gamma=-1.0)


def test_wrong_lengths_are_named() -> None:
    v = [vector.detach() for vector in four()]
    empty = BOTH_LENGTHS | {"rejected_lengths": torch.tensor([3, 0, 1, 1])}
    for loss, arguments in ((losses.ipo_loss, v), (losses.simpo_loss, v[:2]), (losses.orpo_loss, v[:2])):
        refused(r"^rejected_lengths: needs numbers above 0, got 0 at \[1\]", ValueError, loss, *arguments, **empty)
        half = {"chosen_lengths": LENGTHS, "rejected_lengths": None}
        refused("^rejected_lengths: needs a tensor where chosen_lengths", ValueError, loss, *arguments, **half)
        short = {"chosen_lengths": LENGTHS, "rejected_lengths": LENGTHS[:2]}
        refused("^rejected_lengths: needs the shape", ValueError, loss, *arguments, **short)
    zeros = torch.zeros(BATCH, dtype=torch.long)
    refused("^chosen_lengths: needs numbers above 0", ValueError, losses.cpo_loss, *v[:2], chosen_lengths=zeros)
    refused("^chosen_lengths: needs numbers above 0", ValueError, losses.sft_loss, v[0], chosen_lengths=zeros)
    refused("^policy_chosen_logps: needs log-prob", ValueError, losses.orpo_loss, -v[0], v[1], **BOTH_LENGTHS)


def test_wrong_combinations_are_named() -> None:
    one = losses.dpo_loss(*four())
    average = losses.averaged_loss
    refused(r"^weights: needs a sum of 1, got \[0.5, 0.4\]", ValueError, average, [one, one], weights=[0.5, 0.4])
    refused(r"^weights\[1\]: needs a finite number of at", ValueError, average, [one, one], weights=[1.5, -0.5])
    refused("^weights: needs one for each of the losses, got 1 for 2", ValueError, average, [one, one], weights=[1.0])
    refused("^losses: needs at least one", ValueError, average, [], weights=[])
    refused(r"^losses\[0\]: needs a PreferenceLoss, got Tensor", TypeError, average, [one.losses], weights=[1.0])
    half = torch.full((BATCH,), 0.5)
    refused(r"^draws: needs 0 and 1 only, got 0.5", ValueError, losses.mixed_loss, one, one, draws=half)
    refused("^draws: needs the shape", ValueError, losses.mixed_loss, one, one, draws=half[:2])


def test_wrong_masks_and_rewards_are_named() -> None:
    logps, none = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    refused("^mask: needs a bool", TypeError, losses.gae, logps, logps, MASK.float())
    refused("^lam: needs a number in", ValueError, losses.gae, logps, logps, MASK, lam=1.1)
    refused("^mask.sum.*: needs at least 2, got 0", ValueError, losses.whiten, logps, none)
    refused(
        r"^rewards: needs finite numbers, got nan at \[0, 0\]", ValueError, losses.gae, logps * math.nan, logps, MASK
    )
    refused("^rewards: needs at least 2 responses", ValueError, losses.rloo_advantages, torch.zeros(3, 1))
    refused("^clip_range: needs a finite", ValueError, losses.rloo_loss, *torch.zeros(3, 2), clip_range=0)
    refused(
        "^desirable: needs a bool", TypeError, losses.kto_loss, *torch.zeros(3, 2), reference_point=torch.tensor(0.0)
    )
    refused("^policy_logps: needs at least one", ValueError, losses.kto_reference_point, *torch.zeros(2, 0))


# fullgraph refuses code that waits for the device, so this also shows that values are not checked.
@pytest.mark.parametrize("name", ["dpo", "ipo_mean", "orpo", "mixed"])
def test_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    vectors = four(dtype=torch.float32)
    compiled = torch.compile(ALL[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*vectors), ALL[name](*vectors))


def test_nothing_else_of_the_library_is_imported() -> None:
    for file in Path(losses.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mmbdhs"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert node.module.startswith("mmbdhs.losses") or names == {"mmbdhs.checks"}, file


logps = st.lists(st.floats(-500, 0, width=32), min_size=BATCH, max_size=BATCH).map(
    lambda row: torch.tensor(row, dtype=torch.float64)
)
quickly = settings(max_examples=40, deadline=None)


@quickly
@given(logps, logps, logps, logps, st.floats(0.01, 2))
def test_swapping_chosen_and_rejected(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> None:
    one, other = losses.dpo_loss(pc, pr, rc, rr, beta=beta), losses.dpo_loss(pr, pc, rr, rc, beta=beta)
    torch.testing.assert_close(other.losses - one.losses, one.chosen_rewards - one.rejected_rewards)
    assert torch.equal(other.chosen_rewards, one.rejected_rewards)
    even = {"beta": beta, "label_smoothing": 0.5 - 1e-12}
    torch.testing.assert_close(
        losses.dpo_loss(pc, pr, rc, rr, **even).losses, losses.dpo_loss(pr, pc, rr, rc, **even).losses
    )


@quickly
@given(logps, logps, logps, logps, st.floats(0.01, 2))
def test_pairwise_losses_are_functions_of_the_margin(
    pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float
) -> None:
    v, margins = (pc, pr, rc, rr), beta * ((pc - rc) - (pr - rr))
    torch.testing.assert_close(losses.dpo_loss(*v, beta=beta).losses, torch.nn.functional.softplus(-margins))
    torch.testing.assert_close(losses.slic_loss(*v, beta=beta).losses, (1 - margins).clamp(min=0))
    torch.testing.assert_close(4 * beta**2 * losses.ipo_loss(*v, beta=beta).losses, (2 * margins - 1) ** 2)


@quickly
@given(logps, logps, logps, logps, logps)
def test_only_ratios_to_the_reference_matter(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, shift: Tensor) -> None:
    for name in WITH_REFERENCE:
        plain, shifted = ALL[name](pc, pr, rc, rr), ALL[name](pc + shift, pr - shift, rc + shift, rr - shift)
        torch.testing.assert_close(plain, shifted, rtol=1e-6, atol=1e-7, msg=name)


@quickly
@given(logps, logps, logps, logps, st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
def test_combining_a_loss_with_itself(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, draws: list[bool]) -> None:
    one, other = losses.dpo_loss(pc, pr, rc, rr), losses.ipo_loss(pc, pr, rc, rr)
    for same in (
        losses.averaged_loss([one], weights=[1.0]),
        losses.averaged_loss([one, other], weights=[1, 0]),
        losses.mixed_loss(one, one, draws=torch.tensor(draws)),
        losses.mixed_loss(one, other, draws=torch.ones(BATCH)),
        losses.mixed_loss(other, one, draws=torch.zeros(BATCH, dtype=torch.bool)),
    ):
        assert all(torch.equal(mine, its) for mine, its in zip(one, same, strict=True))


@quickly
@given(logps, logps)
def test_reinforcement_identities(first: Tensor, second: Tensor) -> None:
    assert (losses.kl_k3(first, second) >= 0).all()
    grid, mask = torch.stack([first, second]), torch.ones(2, BATCH, dtype=torch.bool)
    torch.testing.assert_close(losses.rloo_advantages(grid).sum(dim=1), torch.zeros(2, dtype=torch.float64))
    to_go = losses.gae(grid, grid.flip(0), mask, gamma=1.0, lam=1.0).returns
    torch.testing.assert_close(to_go, grid.flip(1).cumsum(dim=1).flip(1), atol=1e-8, rtol=1e-8)
    white = losses.whiten(grid, mask)
    torch.testing.assert_close(white.mean(), white.new_zeros(()), atol=1e-6, rtol=0)
    policy = first.clone().requires_grad_()
    losses.rloo_loss(policy, policy.detach(), second).sum().backward()
    assert torch.equal(policy.grad, -second)
