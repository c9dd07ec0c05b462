"""Log-probabilities without the logits of all tokens, against those with them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mmbdhs.logprobs.chunked_head import _add_product, _product, chunked_logps, logps_through

WIDTH = 24


def case(tokens: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """hidden [T, H], weight [V, H], bias [V], labels [T] and what each log-probability counts in the loss, [T]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, WIDTH), (vocabulary, WIDTH), (vocabulary,), (tokens,))
    hidden, weight, bias, counts = (torch.randn(shape, generator=generator) for shape in shapes)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return [hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels, counts]


def plain(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide) / temperature, dim=1).gather(1, labels[:, None]).squeeze(1)


def with_gradients(logps: Callable[..., Tensor], case: list[Tensor], **settings: Any) -> list[Tensor]:
    """Values, and gradients of hidden, weight and bias for the case's weighted sum."""
    *learned, labels, counts = case
    hidden, weight, bias = (x.detach().requires_grad_() for x in learned)
    values = logps(hidden, weight, labels, bias=bias, **settings)
    return [values.detach(), *torch.autograd.grad((values * counts).sum(), (hidden, weight, bias))]


def distance(got: Tensor, truth: Tensor) -> float:
    """Norm of the error over the norm of the truth."""
    error, size = (got.double() - truth.double()).norm(), truth.double().norm()
    return (error / size).item() if size else error.item()


def in_double(case: list[Tensor]) -> list[Tensor]:
    return [x if x.dtype == torch.int64 else x.double() for x in case]


@pytest.mark.parametrize("tokens", [0, 1, 7, 129])
@pytest.mark.parametrize("vocabulary", [1, 31, 1000, 1134])
@pytest.mark.parametrize("chunk", [5, 512, 1134, 2000, None])
def test_values_and_gradients_are_those_of_full_logits(tokens: int, vocabulary: int, chunk: int | None) -> None:
    given = case(tokens, vocabulary)
    ours = with_gradients(chunked_logps, given, temperature=0.7, chunk_vocabulary=chunk)
    truth = with_gradients(plain, in_double(given), temperature=0.7)
    for got, wanted, like in zip(ours, truth, [given[4], *given[:3]], strict=True):
        assert got.shape == wanted.shape and got.dtype == like.dtype
        assert distance(got, wanted) < 1e-6


def test_no_tokens_no_gradient() -> None:
    _, *gradients = with_gradients(chunked_logps, case(0, 31))
    assert [g.count_nonzero() for g in gradients] == [0, 0, 0]


@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_gradcheck(chunk: int) -> None:
    hidden, weight, bias, labels, _ = case(3, 11, torch.float64)
    hidden, weight = hidden[:, :4], weight[:, :4]

    def logps(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return chunked_logps(hidden, weight, labels, bias=bias, temperature=1.3, chunk_vocabulary=chunk)

    assert logps(hidden, weight, bias).dtype == torch.float64
    assert torch.autograd.gradcheck(logps, [x.requires_grad_() for x in (hidden, weight, bias)])


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_the_gradients_that_are_needed(learned: tuple[int, ...]) -> None:
    given = case(7, 31)
    wanted = with_gradients(plain, given)
    leaves = [x.clone().requires_grad_(i in learned) for i, x in enumerate(given[:3])]
    hidden, weight, bias = leaves
    logps = chunked_logps(hidden, weight, given[3], bias=bias, chunk_vocabulary=5)
    (logps * given[4]).sum().backward()
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in learned)
        if i in learned:
            torch.testing.assert_close(leaf.grad, wanted[i + 1], rtol=1e-5, atol=1e-6)


def test_nothing_is_learned_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, labels, _ = case(7, 31)
    monkeypatch.setattr("mmbdhs.logprobs.chunked_head._add_product", None)
    with torch.no_grad():
        logps = chunked_logps(hidden.requires_grad_(), weight, labels)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, plain(hidden, weight, labels).detach())


def test_a_frozen_head_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, labels, _ = case(7, 31)
    logps = chunked_logps(hidden.requires_grad_(), weight, labels)
    monkeypatch.setattr("mmbdhs.logprobs.chunked_head._logits", None)
    logps.sum().backward()
    assert hidden.grad.count_nonzero()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sure", [False, True])
def test_half_precision_is_no_worse_than_full_logits_in_it(dtype: torch.dtype, sure: bool) -> None:
    """sure: labels that have nearly all of the probability, as most tokens have in a trained model."""
    hidden, weight, bias, labels, counts = case(129, 1000, dtype)
    given = [hidden / 4, weight, bias, labels, counts]
    if sure:
        given[0] = weight[labels] / 2
    truth = with_gradients(plain, in_double(given))
    full = [distance(*pair) for pair in zip(with_gradients(plain, given), truth, strict=True)]
    ours = [
        distance(*pair) for pair in zip(with_gradients(chunked_logps, given, chunk_vocabulary=64), truth, strict=True)
    ]
    for name, ours_error, full_error in zip(("values", "hidden", "weight", "bias"), ours, full, strict=True):
        assert ours_error < 1.25 * full_error + 1e-6, f"{name}: {ours} against {full}"


def test_certain_labels_keep_their_gradients() -> None:
    """1 − p of 1e-9 is lost in a float32 softmax, and not here."""
    hidden, weight = torch.tensor([[21.0], [-17.0]]), torch.tensor([[0.0], [1.0]])
    given = [hidden, weight, torch.zeros(2), torch.tensor([1, 0]), torch.ones(2)]
    for got, wanted in zip(with_gradients(chunked_logps, given), with_gradients(plain, in_double(given)), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_huge_logits_make_no_nan(size: float) -> None:
    given = case(7, 31)
    given[0], given[2] = size * given[0], size * given[2]
    truth = with_gradients(plain, in_double(given))
    for got, wanted in zip(with_gradients(chunked_logps, given, chunk_vocabulary=5), truth, strict=True):
        assert got.isfinite().all() and distance(got, wanted) < 1e-5


def test_sums_over_a_large_vocabulary_fit_into_float16() -> None:
    given = case(1, 100_000, torch.float16)
    given[0], given[2] = given[0] / 1000, 0 * given[2]  # all entries are about as likely,
    given[1] = given[1] + 2  # and their rows do not cancel
    truth = with_gradients(plain, in_double(given))
    for got, wanted in zip(with_gradients(chunked_logps, given), truth, strict=True):
        assert distance(got, wanted) < 1e-2


def test_words_that_a_bias_forbids() -> None:
    given = case(7, 31)
    given[2] = torch.full((31,), -torch.inf).index_fill(0, given[3], 0.5)
    given[2][given[3][0]] = -torch.inf  # not even what stands there
    for got, wanted in zip(
        with_gradients(chunked_logps, given, chunk_vocabulary=5)[:2], with_gradients(plain, given)[:2], strict=True
    ):
        torch.testing.assert_close(got[1:], wanted[1:], rtol=1e-5, atol=1e-6)
        assert not got.isnan().any()


def test_a_label_without_alternative_is_certain() -> None:
    given = case(7, 31)
    given[2] = torch.full((31,), -torch.inf).index_fill(0, given[3][:1], 0.5)
    given[3] = given[3][:1].expand(7)
    for got in with_gradients(chunked_logps, given, chunk_vocabulary=5):
        assert torch.equal(got, torch.zeros_like(got))


def test_strides() -> None:
    hidden, weight, bias, labels, counts = case(7, 31)
    wanted = with_gradients(plain, [hidden, weight, bias, labels, counts])
    apart = torch.zeros(7, 2 * WIDTH)
    apart[:, ::2] = hidden
    strided = [apart[:, ::2], weight.T.contiguous().T, bias.repeat_interleave(2)[::2], labels, counts]
    leaves = [x.requires_grad_() for x in strided[:3]]
    values = chunked_logps(leaves[0], leaves[1], labels, bias=leaves[2], chunk_vocabulary=5)
    got = [values, *torch.autograd.grad((values * counts).sum(), leaves)]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("around_backward", [False, True])
def test_autocast_multiplies_as_a_linear_layer_would(around_backward: bool) -> None:
    """Gradients have the dtype of the leaves; float32 sums stay float32 even if backward runs under autocast too."""
    given = case(129, 1000)
    given[0] = given[0] / 4
    truth = with_gradients(plain, in_double(given))

    def errors(logps: Callable[..., Tensor]) -> list[float]:
        hidden, weight, bias = leaves = [x.clone().requires_grad_() for x in given[:3]]
        with torch.autocast("cpu", torch.bfloat16):
            values = logps(hidden, weight, given[3], bias=bias)
        with torch.autocast("cpu", torch.bfloat16, enabled=around_backward):
            gradients = torch.autograd.grad((values * given[4]).sum(), leaves)
        assert [x.dtype for x in (values, *gradients)] == [torch.float32] * 4
        return [distance(*pair) for pair in zip((values, *gradients), truth, strict=True)]

    for ours, full in zip(errors(chunked_logps), errors(plain), strict=True):
        assert 1e-4 < full < 3e-2 and ours < 1.25 * full


def test_a_weight_of_another_dtype_is_brought_to_that_of_hidden() -> None:
    given = case(7, 31)
    mixed = with_gradients(chunked_logps, [given[0].bfloat16(), *given[1:]])
    same = with_gradients(chunked_logps, [x.bfloat16() for x in given[:3]] + given[3:])
    assert mixed[1].dtype == torch.bfloat16 and mixed[2].dtype == torch.float32
    assert distance(mixed[2], same[2]) < 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_around_it(reentrant: bool) -> None:
    given = case(7, 31)

    def again(*args: Any, **settings: Any) -> Tensor:
        return checkpoint(chunked_logps, *args, use_reentrant=False, **settings)

    def reentered(hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor) -> Tensor:
        return checkpoint(lambda *x: chunked_logps(*x[:3], bias=x[3]), hidden, weight, labels, bias, use_reentrant=True)

    wanted = with_gradients(chunked_logps, given)
    if reentrant:  # which cannot work with autograd.grad
        hidden, weight, bias = leaves = [x.clone().requires_grad_() for x in given[:3]]
        (reentered(hidden, weight, given[3], bias=bias) * given[4]).sum().backward()
        got = [x.grad for x in leaves]
    else:
        got = with_gradients(again, given)[1:]
    for one, other in zip(got, wanted[1:], strict=True):
        assert torch.equal(one, other)


def test_compiled() -> None:
    given = case(7, 31)
    compiled = torch.compile(chunked_logps, backend="eager")
    for one, other in zip(with_gradients(compiled, given), with_gradients(chunked_logps, given), strict=True):
        torch.testing.assert_close(one, other)


def test_there_is_no_second_derivative() -> None:
    hidden, weight, _, labels, _ = case(7, 31)
    hidden.requires_grad_()
    (first,) = torch.autograd.grad(chunked_logps(hidden, weight, labels).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class Allocations(TorchDispatchMode):
    """What operations allocate: the largest at once, and the most bytes alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):  # what is not made here does not count
            if isinstance(given, Tensor):
                self._note(given, 0)
        results = func(*args, **(kwargs or {}))
        for made in tree_leaves(results):
            if isinstance(made, Tensor):
                self._note(made, made.untyped_storage().nbytes())
        return results

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._freed, key, size)
        self.live += size
        self.most, self.largest = max(self.most, self.live), max(self.largest, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_two_chunks_and_the_gradients(dtype: torch.dtype) -> None:
    tokens, vocabulary, chunk = 200, 2000, 100
    hidden, weight, _, labels, _ = case(tokens, vocabulary, dtype)
    bound = 2 * tokens * chunk * 4
    with Allocations() as forward:
        total = chunked_logps(hidden.requires_grad_(), weight.requires_grad_(), labels, chunk_vocabulary=chunk).sum()
    with Allocations() as backward:
        total.backward()
    assert forward.largest == tokens * chunk * 4 == backward.largest - weight.nbytes + tokens * chunk * 4
    assert tokens * chunk * 4 < forward.most < bound
    assert tokens * chunk * 4 < backward.most - hidden.nbytes - weight.nbytes < bound
    with Allocations() as full:
        plain(hidden, weight, labels)
    assert full.largest == tokens * vocabulary * 4  # so that this would be seen


class Products(TorchDispatchMode):
    """The matrix products that run, by name, with the dtypes of their factors and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "mm" in func.name():
            self.seen.append((func.name(), args[1].dtype, result.dtype))
        return result


def products(device: str, dtype: torch.dtype) -> list[tuple[str, torch.dtype, torch.dtype]]:
    """Those of both ways to multiply into a float32 tensor, on tensors without data."""
    with FakeTensorMode(), Products() as mode:
        left, right = (torch.empty(shape, dtype=dtype, device=device) for shape in ((7, 5), (5, 3)))
        out = torch.empty(7, 3, device=device)
        _product(left, right, out=out)
        _add_product(left, right, out=out)
    return mode.seen


@pytest.mark.skipif("dtype_out" not in torch.ops.aten.mm.overloads(), reason="PyTorch before 2.8 rounds such sums")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_halves_are_not_rounded_on_cuda(dtype: torch.dtype) -> None:
    wide = torch.float32
    assert products("cuda", dtype) == [("aten::mm.dtype_out", dtype, wide), ("aten::mm.dtype", dtype, wide)]
    assert products("cpu", dtype) == [("aten::mm", dtype, dtype)] * 2
    assert (
        products("cuda", wide) == products("cpu", wide) == [("aten::mm.out", wide, wide), ("aten::addmm_", wide, wide)]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_on_cuda_against_float64(dtype: torch.dtype) -> None:
    """Values lose nothing beyond the rounding of the operands, gradients are rounded once more."""
    given = [x.cuda() for x in case(129, 1134, dtype)]
    truth = with_gradients(plain, in_double(given))
    values, *gradients = with_gradients(chunked_logps, given, chunk_vocabulary=500)
    assert distance(values, truth[0]) < 1e-5
    for got, wanted in zip(gradients, truth[1:], strict=True):
        assert distance(got, wanted) < 1e-2


@pytest.mark.parametrize("chunk", [1, 5, 129, 200, None])
def test_through_a_linear_head(chunk: int | None) -> None:
    def through(hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor) -> Tensor:
        head = partial(nn.functional.linear, weight=weight, bias=bias)
        return logps_through(head, hidden, labels, temperature=0.7, chunk_tokens=chunk)

    given = case(129, 1000)
    ours = with_gradients(chunked_logps, given, temperature=0.7)
    for got, wanted in zip(with_gradients(through, given), ours, strict=True):
        assert distance(got, wanted) < 2e-6


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_through_a_capped_head(tokens: int, dtype: torch.dtype) -> None:
    hidden, weight, _, labels, counts = case(tokens, 31, dtype)
    head = nn.Linear(WIDTH, 31, bias=False, dtype=dtype)
    head.weight.data = weight

    def capped(hidden: Tensor) -> Tensor:
        return 3 * torch.tanh(head(hidden) / 3)

    def full(hidden: Tensor) -> Tensor:
        return torch.log_softmax(capped(hidden).float(), dim=1).gather(1, labels[:, None]).squeeze(1)

    results = []
    for logps in (lambda x: logps_through(capped, x, labels, chunk_tokens=2), full):
        leaf = hidden.clone().requires_grad_()
        values = logps(leaf)
        assert values.dtype == torch.float32 and values.shape == (tokens,)
        results.append([values, *torch.autograd.grad((values * counts).sum(), (leaf, head.weight))])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2  # the weight's gradient is a sum over chunks, in its dtype
    for got, wanted in zip(*results, strict=True):
        assert distance(got, wanted) < tolerance


BROKEN = {
    "hidden: needs a floating-point": {"hidden": torch.zeros(7, WIDTH, dtype=torch.int64)},
    "hidden: needs shape": {"hidden": torch.zeros(1, 7, WIDTH)},
    "labels: needs int64": {"labels": torch.zeros(7)},
    r"labels: needs shape \[7\]": {"labels": torch.zeros(6, dtype=torch.int64)},
    r"labels: needs tokens of a vocabulary of 31, got -100 at \[0\]": {"labels": torch.full((7,), -100)},
    r"labels: .* got 31 at \[0\]": {"labels": torch.full((7,), 31)},
    "temperature: needs": {"temperature": 0.0},
}


@pytest.mark.parametrize("message", BROKEN)
@pytest.mark.parametrize("through", [False, True])
def test_arguments_are_refused_by_name(message: str, through: bool) -> None:
    hidden, weight, _, labels, _ = case(7, 31)
    given = {"hidden": hidden, "labels": labels} | BROKEN[message]
    with pytest.raises((TypeError, ValueError), match=message):
        logps_through(nn.Linear(WIDTH, 31), **given) if through else chunked_logps(weight=weight, **given)


def test_what_only_one_of_them_takes_is_refused_by_name() -> None:
    hidden, weight, _, labels, _ = case(7, 31)
    with pytest.raises(ValueError, match=r"weight: needs shape \[V, 24\]"):
        chunked_logps(hidden, weight.T, labels)
    with pytest.raises(ValueError, match=r"bias: needs shape \[31\]"):
        chunked_logps(hidden, weight, labels, bias=torch.zeros(30))
    with pytest.raises(ValueError, match="chunk_vocabulary: needs a number of at least 1, got 0"):
        chunked_logps(hidden, weight, labels, chunk_vocabulary=0)
    with pytest.raises(ValueError, match="chunk_tokens: needs a number of at least 1, got -1"):
        logps_through(nn.Linear(WIDTH, 31), hidden, labels, chunk_tokens=-1)
