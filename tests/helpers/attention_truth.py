"""Attention in float64, written from its definition, and random arguments for the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
LSE_TOLERANCE = 1e-5


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """Attend from q [Hq, Lq, D] to k, v [Hkv, L, D] where `seen` [Lq, L]. Returns out, lse [Hq, Lq] in float64."""
    group = len(q) // len(k)
    q, k, v = q.double(), k.double().repeat_interleave(group, 0), v.double().repeat_interleave(group, 0)
    scores = q @ k.mT * scale
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    lse = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    # Query by query with its own keys: the weight 0 of a hidden key would not hide a value that is not finite.
    rows = [scores[:, query, None, own].softmax(-1) @ v[:, own] for query, own in enumerate(seen)]
    return torch.cat(rows, 1), lse


def shared_prefix(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The results of `shared_prefix_attention` for `arguments`, branch by branch."""
    a = {"visible": None, "example": None, "scale": None, "softcap": 0.0, **arguments}
    rows = []
    for b, q in enumerate(a["q"]):
        begin = 0 if a["example"] is None else int(a["prefix_offsets"][a["example"][b]])
        keys = torch.arange(begin, begin + int(a["prefix_count"][b]))
        keys = keys if a["visible"] is None else a["visible"][keys].long()
        length = int(a["suffix_length"][b])
        k = torch.cat([a["k_prefix"][:, keys], a["k_suffix"][b, :, :length]], 1)
        v = torch.cat([a["v_prefix"][:, keys], a["v_suffix"][b, :, :length]], 1)
        seen = torch.ones(1, k.shape[1], dtype=torch.bool)
        out, lse = attend(q[:, None], k, v, seen, a["scale"] or q.shape[-1] ** -0.5, a["softcap"])
        rows.append((out[:, 0], lse[:, 0]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def masked(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, causal: bool, softcap: float = 0.0) -> tuple[Tensor, ...]:
    queries, keys = q.shape[2], k.shape[2]
    order = torch.ones(queries, keys, dtype=torch.bool)
    order = order.tril(keys - queries) if causal else order
    rows = [
        attend(*row, order & seen, q.shape[-1] ** -0.5, softcap) for *row, seen in zip(q, k, v, visible, strict=True)
    ]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def assert_close(got: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], slack: float = 1.0) -> None:
    """Check results within the tolerances times `slack`; a row that sees nothing has the lse -inf."""
    (out, lse), (true_out, true_lse) = got, truth
    assert lse.dtype == torch.float32 and out.is_contiguous() and lse.is_contiguous()
    near = {"rtol": 0, "equal_nan": True}
    torch.testing.assert_close(out.cpu().double(), true_out, atol=slack * TOLERANCES[out.dtype], **near)
    torch.testing.assert_close(lse.cpu().double(), true_lse, atol=slack * LSE_TOLERANCE, **near)


def random_shared_prefix(
    branches: int,
    heads: tuple[int, int],
    head_dim: int,
    prefix: int,
    suffix: int,
    dtype: torch.dtype = torch.float32,
    examples: int = 0,
    gather: bool = False,
    step_major: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments with lengths of all kinds, among them 0 and the largest. heads: (query heads, key heads)."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance).to(dtype)

    def below(high: Tensor | int, count: int) -> Tensor:
        """Integers in 0 … high, often one of the two ends."""
        draw = (torch.rand(count, generator=chance) * 1.4 - 0.2).clamp(0, 1)
        return (draw * high).round().int()

    def suffixes() -> Tensor:
        if step_major:
            return normal(suffix, branches, heads[1], head_dim).permute(1, 2, 0, 3)
        return normal(branches, heads[1], suffix, head_dim)

    visible = torch.randperm(prefix, generator=chance)[: prefix * 2 // 3].int() if gather else None
    keys = len(visible) if gather else prefix
    arguments = {
        "q": normal(branches, heads[0], head_dim),
        "k_prefix": normal(heads[1], prefix, head_dim),
        "v_prefix": normal(heads[1], prefix, head_dim),
        "prefix_count": below(keys, branches),
        "k_suffix": suffixes(),
        "v_suffix": suffixes(),
        "suffix_length": below(suffix, branches),
        "visible": visible,
    }
    if examples:
        offsets = below(keys, examples + 1).sort()[0]
        example = torch.randint(examples, (branches,), generator=chance, dtype=torch.int32)
        arguments |= {"example": example, "prefix_offsets": offsets}
        arguments["prefix_count"] = below(offsets.diff()[example.long()], branches)
    return arguments
