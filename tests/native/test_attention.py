"""The attention ops against float64: both backends, every instruction set of this machine, threads, gradients."""

import math
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from helpers import attention_truth as truth
from helpers.attention_cases import BROKEN, broken, weightless
from helpers.ragged import int32

from mmbdhs.native import Masked, SharedPrefix, attention, backend, binding, reference

DTYPES = tuple(truth.TOLERANCES)
GROUPS = ((1, 1), (8, 2), (7, 1), (16, 2), (71, 1))  # query heads, key heads
# branches, prefix, suffix
SIZES = ((1, 1, 1), (3, 31, 0), (5, 0, 31), (8, 129, 3), (70, 65, 5), (2, 1134, 129), (17, 64, 64))
HEAD_DIMS = (32, 40, 64, 80, 128, 256)


def run(implementation: ModuleType, arguments: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return implementation.shared_prefix_attention(SharedPrefix(**arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_shared_prefix_sizes(implementation: ModuleType, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    for number, (heads, head_dim) in enumerate(zip(GROUPS, HEAD_DIMS, strict=False)):
        arguments = truth.random_shared_prefix(size[0], heads, head_dim, *size[1:], dtype, seed=number)
        truth.assert_close(run(implementation, arguments), truth.shared_prefix(arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_shared_prefix_examples_and_views(implementation: ModuleType, dtype: torch.dtype, head_dim: int) -> None:
    for branches, examples, gather, step_major in ((1, 1, True, False), (9, 3, True, True), (33, 6, False, True)):
        options = {"examples": examples, "gather": gather, "step_major": step_major, "seed": branches}
        arguments = truth.random_shared_prefix(branches, (8, 2), head_dim, 129, 31, dtype, **options)
        for softcap in (0.0, 3.0, 50.0):
            capped = {**arguments, "softcap": softcap}
            truth.assert_close(run(implementation, capped), truth.shared_prefix(capped))


def test_every_stride() -> None:
    """Heads and tokens may be at any distance from each other, even at none."""
    arguments = truth.random_shared_prefix(3, (4, 2), 32, 9, 5)
    for name in ("q", "k_prefix", "v_prefix", "k_suffix", "v_suffix"):
        tensor = arguments[name]
        wide = torch.zeros(*(2 * size + 1 for size in tensor.shape))
        view = wide[tuple(slice(1, 2 * size, 2) for size in tensor.shape[:-1])][..., 3 : 3 + tensor.shape[-1]]
        arguments[name] = view.copy_(tensor)
    truth.assert_close(attention.shared_prefix_attention(**arguments), truth.shared_prefix(arguments))
    arguments["k_suffix"] = arguments["k_suffix"][:1].expand(3, -1, -1, -1)
    truth.assert_close(attention.shared_prefix_attention(**arguments), truth.shared_prefix(arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_masked(implementation: ModuleType, dtype: torch.dtype, causal: bool, softcap: float) -> None:
    chance = torch.Generator().manual_seed(1)
    for queries, keys, heads, head_dim in (
        (1, 1, (1, 1), 32),
        (31, 31, (4, 4), 64),
        (129, 140, (7, 1), 40),
        (70, 129, (2, 1), 128),
        (3, 1134, (8, 2), 80),
    ):
        q = torch.randn(2, heads[0], queries, head_dim, generator=chance).to(dtype)
        k, v = (torch.randn(2, heads[1], keys, head_dim, generator=chance).to(dtype) for _ in range(2))
        visible = torch.rand(2, keys, generator=chance) > 0.7
        got = implementation.masked_attention(Masked(q, k, v, visible, causal, softcap=softcap))
        truth.assert_close(got, truth.masked(q, k, v, visible, causal, softcap))


def test_rows_that_see_nothing(implementation: ModuleType) -> None:
    arguments = truth.random_shared_prefix(4, (2, 1), 32, 5, 3)
    arguments |= {"prefix_count": int32(0, 5, 0, 1), "suffix_length": int32(0, 0, 3, 0)}
    out, lse = run(implementation, arguments)
    assert out[0].eq(0).all() and lse[0].eq(-torch.inf).all() and lse[1:].isfinite().all()
    q, k = torch.randn(1, 2, 4, 32), torch.randn(1, 2, 4, 32)
    out, lse = implementation.masked_attention(Masked(q, k, k, torch.tensor([[False, False, True, True]]), True))
    assert out[:, :, :2].eq(0).all() and lse[:, :, :2].eq(-torch.inf).all() and lse[:, :, 2:].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 0), (0, 0, 0)])
def test_nothing_at_all(implementation: ModuleType, shape: tuple[int, int, int]) -> None:
    branches, prefix, suffix = shape
    arguments = truth.random_shared_prefix(branches, (2, 1), 32, prefix, suffix)
    out, lse = run(implementation, arguments)
    assert out.shape == (branches, 2, 32) and lse.shape == (branches, 2)
    none = torch.empty(0, 2, 3, 32)
    out, _ = implementation.masked_attention(Masked(none, none, none, torch.empty(0, 3, dtype=torch.bool)))
    assert out.shape == none.shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_branch_stays_alone(implementation: ModuleType, bad: float, dtype: torch.dtype) -> None:
    """A NaN in one branch, or in keys that no branch sees, reaches no other branch."""
    arguments = truth.random_shared_prefix(3, (2, 1), 64, 9, 5, dtype)
    arguments |= {"prefix_count": int32(8, 8, 8), "suffix_length": int32(4, 4, 4)}
    expected = truth.shared_prefix(arguments)
    arguments["v_suffix"][1, :, 2] = bad
    arguments["k_suffix"][:, :, 4] = bad
    arguments["k_prefix"][:, 8] = bad
    out, lse = run(implementation, arguments)
    assert not out[1].isfinite().any()
    keep = torch.tensor([0, 2])
    truth.assert_close((out[keep], lse[keep]), (expected[0][keep], expected[1][keep]))


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape", "options"), BROKEN)
def test_broken_keys_reach_those_who_see_them(
    implementation: ModuleType,
    op: str,
    shape: tuple,
    options: dict,
    dtype: torch.dtype,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A NaN or an infinity that only some rows of a tile see counts in these rows, and in no other."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    arguments, expected = broken(op, dtype, shape, options)
    operands = {"shared_prefix_attention": SharedPrefix, "masked_attention": Masked}[op](**arguments)
    assert 0 < expected[0].isfinite().sum() < expected[0].numel()
    truth.assert_close(getattr(implementation, op)(operands), expected)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bad", "good"), [(0, 299), (299, 0), (4, 5)])
@pytest.mark.parametrize(("op", "operands"), [("shared_prefix_attention", SharedPrefix), ("masked_attention", Masked)])
def test_broken_value_without_weight(
    implementation: ModuleType,
    op: str,
    operands: type,
    bad: int,
    good: int,
    dtype: torch.dtype,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A visible key counts even where its weight rounds to 0."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    arguments, expected = weightless(op, dtype, bad, good)
    truth.assert_close(getattr(implementation, op)(operands(**arguments)), expected)


def test_nan_scores_give_nan(implementation: ModuleType) -> None:
    """Every NaN counts, whatever its bits."""
    arguments = truth.random_shared_prefix(2, (1, 1), 32, 3, 0)
    arguments["prefix_count"] = int32(3, 3)
    arguments["q"][0, 0, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    out, lse = run(implementation, arguments)
    assert out[0].isnan().all() and lse[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [-20, -2, 0.5, 4, 7.9, 8.1, 20])
def test_scores_that_rise_or_fall(implementation: ModuleType, dtype: torch.dtype, slope: float) -> None:
    """Scores drift by `slope` powers of two in 64 keys: they pass a row's maximum by a little, by much, or never."""
    arguments = truth.random_shared_prefix(3, (4, 2), 64, 150, 70, dtype)
    arguments["q"][..., 0] = 8.0  # with a scale of 1 / 8, the first number of a key adds to its score as it is
    drift = slope * math.log(2) / 64 * torch.arange(220)
    arguments["k_prefix"][..., 0], arguments["k_suffix"][..., 0] = drift[:150].to(dtype), drift[150:].to(dtype)
    # Larger scores are rounded more coarsely.
    truth.assert_close(run(implementation, arguments), truth.shared_prefix(arguments), slack=10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_share_the_keys(dtype: torch.dtype) -> None:
    """With one key head, each of several threads takes a part of the keys, and the parts are merged."""
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for examples in (0, 2):
                arguments = truth.random_shared_prefix(3, (4, 1), 64, 1134, 300, dtype, examples=examples)
                arguments["prefix_count"][0] = arguments["suffix_length"][0] = 0
                truth.assert_close(run(binding, arguments), truth.shared_prefix(arguments))
            for queries, causal, share in ((1, False, 0.5), (40, True, 0.3), (5, True, 0.0)):
                q, k, v = (torch.randn(1, heads, n, 64).to(dtype) for heads, n in ((4, queries), (1, 1134), (1, 1134)))
                visible = torch.rand(1, 1134) < share
                got = binding.masked_attention(Masked(q, k, v, visible, causal))
                truth.assert_close(got, truth.masked(q, k, v, visible, causal))
    finally:
        torch.set_num_threads(threads)


_VALUES = "(sizes or rise or views or stride or test_masked or nothing or broken or nan or threads) and not reference"


@pytest.mark.parametrize("instruction_set", ["base", "avx2", "avx512", "avx512_bf16"])
def test_instruction_sets(instruction_set: str) -> None:
    environment = {**os.environ, "MMBDHS_ISA": instruction_set}
    name = [sys.executable, "-c", "from mmbdhs.native import _extension as e; print(e.instruction_set())"]
    found = subprocess.run(name, env=environment, capture_output=True, text=True, check=False)
    if "has no" in found.stderr:
        pytest.skip(f"this machine has no {instruction_set}")
    assert found.stdout.split() == [instruction_set], found.stderr
    if instruction_set == backend.extension()[0].instruction_set():
        return  # the other tests of this file run on it
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        f"({_VALUES}) and not reference",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_instruction_set() -> None:
    code = "from mmbdhs.native import _extension as e; e.instruction_set()"
    environment = {**os.environ, "MMBDHS_ISA": "avx1024"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ValueError: MMBDHS_ISA: this machine has no 'avx1024' kernels" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork() -> None:
    """The child has only one thread of the parent's pool, and must not wait for the others."""
    code = """
import os, torch
from mmbdhs.native import attention
torch.set_num_threads(2)
q, k = torch.randn(1, 8, 300, 64), torch.randn(1, 8, 300, 64)
run = lambda: attention.masked_attention(q, k, k, torch.ones(1, 300, dtype=torch.bool))[0]
expected = run()
child = os.fork()
if not child:
    os._exit(0 if (run().numpy() == expected.numpy()).all() else 1)  # an op of torch itself could wait for ever
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["0"], done.stderr


def masked_arguments(dtype: torch.dtype = torch.float32) -> dict:
    chance = torch.Generator().manual_seed(2)
    q = torch.randn(2, 4, 7, 32, generator=chance).to(dtype)
    k, v = (torch.randn(2, 2, 11, 32, generator=chance).to(dtype) for _ in range(2))
    visible = torch.rand(2, 11, generator=chance) > 0.5
    return {"q": q, "k": k, "v": v, "visible": visible}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("scores_at_once", [1, 1 << 20])
def test_gradients(monkeypatch: pytest.MonkeyPatch, causal: bool, softcap: float, scores_at_once: int) -> None:
    """Compared with autograd through the float64 definition; some queries see nothing, and lse has a gradient too."""
    monkeypatch.setattr(attention, "_BACKWARD_SCORES", scores_at_once)
    arguments = masked_arguments()
    operands = [arguments[name].requires_grad_() for name in "qkv"]
    out, lse = attention.masked_attention(**arguments, causal=causal, softcap=softcap)
    wanted_out, wanted_lse = truth.masked(**arguments, causal=causal, softcap=softcap)
    weights, seen = torch.randn_like(out), wanted_lse > -torch.inf
    got = torch.autograd.grad((out * weights).sum() + lse[seen].sum(), operands)
    wanted = torch.autograd.grad((wanted_out * weights)[seen].sum() + wanted_lse[seen].sum(), operands)
    for gradient, true in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, true.nan_to_num(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(("name", "bad"), [("v", torch.inf), ("v", torch.nan), ("k", torch.nan)])
def test_gradients_of_queries_before_a_broken_key(name: str, bad: float, softcap: float) -> None:
    """Queries that do not see it have the gradients that they have with a sound one; those that see it have NaN."""
    arguments = masked_arguments()
    arguments["visible"][:] = True
    q = arguments["q"].requires_grad_()

    def gradient() -> torch.Tensor:
        out, _ = attention.masked_attention(**arguments, causal=True, softcap=softcap)
        return torch.autograd.grad(out[..., 0].sum(), q)[0]

    sound = gradient()
    arguments[name][:, :, 8] = bad  # query i sees the keys up to 4 + i
    broken = gradient()
    torch.testing.assert_close(broken[:, :, :4], sound[:, :, :4])
    assert broken[:, :, 4:].isnan().all() and sound.isfinite().all()


def test_decoding_has_no_gradients() -> None:
    arguments = truth.random_shared_prefix(3, (4, 2), 64, 31, 9, torch.float32)
    arguments["q"].requires_grad_()
    out, _ = attention.shared_prefix_attention(**arguments)
    with pytest.raises(NotImplementedError, match="shared_prefix_attention has no gradients"):
        out.sum().backward()


def test_gradients_keep_the_dtype() -> None:
    arguments = masked_arguments(torch.bfloat16)
    arguments["q"].requires_grad_()
    attention.masked_attention(**arguments)[0].sum().backward()
    assert arguments["q"].grad.dtype == torch.bfloat16


def test_opcheck() -> None:
    prefix = truth.random_shared_prefix(3, (4, 2), 32, 9, 5, examples=2, gather=True)
    torch.library.opcheck(torch.ops.mmbdhs.shared_prefix_attention.default, (*prefix.values(), None, 0.0))
    masked = masked_arguments()
    for name in "qkv":
        masked[name].requires_grad_()
    torch.library.opcheck(torch.ops.mmbdhs.masked_attention.default, (*masked.values(), True, None, 0.0))


def test_compiles_whole() -> None:
    """Forward and backward pass compile to one graph."""
    arguments = masked_arguments()
    operands = [arguments[name].requires_grad_() for name in "qkv"]

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return attention.masked_attention(q.sin(), k, v, visible, causal=True)[0].square().sum()

    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(**arguments), operands)
    for compiled, plain in zip(got, torch.autograd.grad(loss(**arguments), operands), strict=True):
        torch.testing.assert_close(compiled, plain)
    prefix = truth.random_shared_prefix(3, (4, 2), 32, 9, 5)
    compiled = torch.compile(lambda: attention.shared_prefix_attention(**prefix), fullgraph=True, backend="aot_eager")
    truth.assert_close(compiled(), truth.shared_prefix(prefix))


def test_backends_take_the_same_arguments() -> None:
    arguments = truth.random_shared_prefix(5, (4, 2), 32, 33, 7, examples=2, gather=True)
    for got, expected in zip(run(binding, arguments), run(reference, arguments), strict=True):
        torch.testing.assert_close(got, expected)
