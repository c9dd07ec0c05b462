"""Cases for the CUDA kernels: sizes around their tiles, odd strides, and NaN wherever nothing may be read."""

from __future__ import annotations

from typing import Any

import torch
from helpers import attention_truth as truth
from torch import Tensor

# branches, (query heads, key heads), head size, prefix rows, suffix rows; options
SHARED_PREFIX = [
    ((1, (1, 1), 32, 1, 1), {}),
    ((3, (8, 2), 64, 129, 0), {"spare": 8}),
    ((5, (7, 1), 72, 31, 129), {"spare": 1, "softcap": 2.0}),
    ((9, (8, 1), 256, 129, 5), {"gather": True}),
    ((8, (2, 2), 128, 1134, 31), {"spare": 8, "gather": True, "examples": 3}),
    ((6, (16, 4), 40, 600, 31), {"examples": 5, "softcap": 30.0}),
    ((2, (80, 2), 96, 31, 33), {}),
    ((2, (2, 1), 128, 0, 9), {}),
    ((3, (2, 2), 64, 0, 0), {}),
]

# batch, (query heads, key heads), queries, keys, head size; options
MASKED = [
    ((1, (1, 1), 1, 1, 32), {"share": 1.0}),
    ((2, (8, 2), 31, 129, 64), {"causal": True, "spare": 8}),
    ((2, (7, 1), 9, 31, 72), {"spare": 1, "softcap": 2.0}),
    ((1, (4, 4), 33, 1134, 128), {"causal": True, "share": 0.1}),
    ((3, (8, 1), 5, 2047, 256), {"share": 0.01}),
    ((2, (2, 2), 40, 40, 256), {"causal": True, "softcap": 30.0}),
    ((2, (2, 1), 3, 129, 96), {"share": 0.0}),
    ((1, (2, 2), 3, 0, 64), {}),
]


CASES = [("shared_prefix_attention", *case) for case in SHARED_PREFIX]
CASES += [("masked_attention", *case) for case in MASKED]

# Keys that only some rows of a tile see: their values become infinite or NaN, one of them itself becomes NaN.
BROKEN = [
    ("shared_prefix_attention", (7, (4, 2), 64, 129, 9), {}),
    ("shared_prefix_attention", (40, (2, 2), 128, 300, 31), {"examples": 3}),
    ("shared_prefix_attention", (5, (7, 1), 72, 31, 0), {"spare": 1}),
    ("shared_prefix_attention", (9, (8, 1), 256, 129, 5), {"gather": True}),
    ("shared_prefix_attention", (6, (2, 1), 128, 1134, 3), {"softcap": 30.0}),
    ("masked_attention", (1, (2, 1), 40, 140, 64), {"causal": True}),
    ("masked_attention", (2, (7, 1), 9, 31, 72), {"causal": True, "spare": 1}),
    ("masked_attention", (1, (2, 2), 33, 1134, 128), {"causal": True, "share": 0.8}),
    ("masked_attention", (2, (2, 2), 40, 40, 256), {"causal": True, "softcap": 30.0}),
]

Case = tuple[dict[str, Any], tuple[Tensor, Tensor]]


def arguments_and_results(op: str, dtype: torch.dtype, shape: tuple, options: dict[str, Any]) -> Case:
    """All arguments of a case, in the order of the op, and what it should give."""
    return {"shared_prefix_attention": shared_prefix, "masked_attention": masked}[op](dtype, shape, **options)


def broken(op: str, dtype: torch.dtype, shape: tuple, options: dict[str, Any]) -> Case:
    """A case with a NaN and infinities among the values, and NaN as the last key that any row sees."""
    arguments, _ = arguments_and_results(op, dtype, shape, options)
    if op == "shared_prefix_attention":
        begins = torch.zeros_like(arguments["prefix_count"])
        if arguments["example"] is not None:
            begins = arguments["prefix_offsets"][arguments["example"].long()]
        ends = (begins + arguments["prefix_count"]).unique()
        rows = slice(None) if arguments["visible"] is None else arguments["visible"].long()
        keys = torch.arange(arguments["k_prefix"].shape[1])[rows]
        seen_last, k, v = keys[ends[ends > 0].long() - 1], arguments["k_prefix"], arguments["v_prefix"]
    else:
        queries, keys = shape[2:4]
        seen_last = keys - queries + torch.arange(1, queries, max(queries // 5, 1))
        k, v = arguments["k"], arguments["v"]
    for number, key in enumerate(seen_last.tolist()):
        v[..., key, number::8] = (torch.nan, torch.inf, -torch.inf)[number % 3]
    k[..., seen_last[-1], :] = torch.nan
    truths = {"shared_prefix_attention": truth.shared_prefix, "masked_attention": masked_truth}
    return arguments, truths[op](arguments)


def weightless(op: str, dtype: torch.dtype, bad: int, good: int) -> Case:
    """Of 300 keys, key `good` has all the weight; the value of key `bad` is infinite in one place: 0 · ∞ is NaN."""
    q, k, v = torch.zeros(1, 1, 64), torch.zeros(1, 300, 64), torch.zeros(1, 300, 64)
    q[..., 0], k[..., 0], k[:, good, 0] = 100.0, -40.0, 40.0
    v[:, good], v[:, bad, 3] = 1.0, torch.inf
    out, lse = torch.ones(1, 1, 64, dtype=torch.double), torch.full((1, 1), 500.0, dtype=torch.double)
    out[..., 3] = torch.nan
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    arguments: dict[str, Any] = {"q": q, "scale": 0.125, "softcap": 0.0}
    if op == "masked_attention":
        visible = torch.ones(1, 300, dtype=torch.bool)
        arguments |= {"q": q[None], "k": k[None], "v": v[None], "visible": visible, "causal": True}
        return arguments, (out[None], lse[None])
    arguments |= {"k_prefix": k, "v_prefix": v, "k_suffix": k[None, :, :0], "v_suffix": v[None, :, :0]}
    arguments |= {"prefix_count": torch.tensor([300]).int(), "suffix_length": torch.tensor([0]).int()}
    return arguments, (out, lse)


def masked_truth(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return truth.masked(**{name: value for name, value in arguments.items() if name != "scale"})


def spaced(x: Tensor, spare: int) -> Tensor:
    """`x` with the same order in memory, and `spare` elements after each row."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    in_memory = x.permute(order)
    rows = torch.full((*in_memory.shape[:-1], x.shape[-1] + spare), torch.nan, dtype=x.dtype)[..., : x.shape[-1]]
    return rows.copy_(in_memory).permute([order.index(dim) for dim in range(x.dim())])


def shared_prefix(dtype: torch.dtype, shape: tuple, spare: int = 0, softcap: float = 0.0, **options: Any) -> Case:
    """All arguments of `shared_prefix_attention`, in order, and what it should give."""
    found = truth.random_shared_prefix(*shape, dtype, step_major=True, **options)
    beyond = torch.arange(found["k_suffix"].shape[2]) >= found["suffix_length"][:, None]
    unlisted = torch.ones(found["k_prefix"].shape[1], dtype=torch.bool)
    unlisted[slice(None) if found["visible"] is None else found["visible"].long()] = False
    for part, hidden in (("suffix", beyond[:, None, :, None]), ("prefix", unlisted[:, None])):
        for name in (f"k_{part}", f"v_{part}"):
            found[name] = spaced(found[name].masked_fill(hidden, torch.nan), spare)
    found["q"] = spaced(found["q"], spare)
    found |= {name: found.get(name) for name in ("example", "prefix_offsets")}
    found |= {"scale": shape[2] ** -0.5, "softcap": softcap}
    return found, truth.shared_prefix(found)


def masked(
    dtype: torch.dtype,
    shape: tuple,
    share: float = 0.5,
    causal: bool = False,
    spare: int = 0,
    softcap: float = 0.0,
) -> Case:
    """All arguments of `masked_attention`, in order, and what it should give; `share` of the keys are visible."""
    batch, heads, queries, keys, head_dim = shape
    chance = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, count, head_dim, generator=chance).to(dtype).transpose(1, 2)
        for length, count in ((queries, heads[0]), (keys, heads[1]), (keys, heads[1]))
    )
    visible = torch.rand(batch, keys, generator=chance) < share
    expected = truth.masked(q, k, v, visible, causal, softcap)
    k, v = (x.masked_fill(~visible[:, None, :, None], torch.nan) for x in (k, v))
    found = {name: spaced(x, spare) for name, x in {"q": q, "k": k, "v": v}.items()}
    return {**found, "visible": visible, "causal": causal, "scale": head_dim**-0.5, "softcap": softcap}, expected
