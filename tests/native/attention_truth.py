"""Arguments for the attention ops, and what they should give: float64, by the formula, row after row."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest errors of `out` on normally distributed data; lse is float32 for all.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
LSE_TOLERANCE = 1e-5


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """q [..., 1, D] over k, v [..., L, D] -> out [..., 1, D], lse [..., 1], in float64."""
    scores = q.double() @ k.double().mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


def shared_prefix_truth(
    q: Tensor,
    k_prefix: Tensor,
    v_prefix: Tensor,
    prefix_count: Tensor,
    k_suffix: Tensor,
    v_suffix: Tensor,
    suffix_length: Tensor,
    visible: Tensor | None = None,
    example: Tensor | None = None,
    prefix_offsets: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """What `shared_prefix_attention` should give, in float64."""
    order = torch.arange(k_prefix.shape[1]) if visible is None else visible.long()
    group = q.shape[1] // k_prefix.shape[0]
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:2], -torch.inf, dtype=torch.float64)
    for branch in range(len(q)):
        begin = 0 if example is None else int(prefix_offsets[example[branch]])
        rows = order[begin : begin + int(prefix_count[branch])]
        for head in range(q.shape[1]):
            at = head // group
            k = torch.cat([k_prefix[at, rows], k_suffix[branch, at, : suffix_length[branch]]])
            v = torch.cat([v_prefix[at, rows], v_suffix[branch, at, : suffix_length[branch]]])
            if len(k):
                row_out, row_lse = attend(q[branch, head, None], k, v, scale, softcap)
                out[branch, head], lse[branch, head] = row_out[0], row_lse[0]
    return out, lse


def masked_truth(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, causal: bool, scale: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What `masked_attention` should give, in float64."""
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for n in range(len(q)):
        for i in range(q.shape[2]):
            last = k.shape[2] - q.shape[2] + i if causal else k.shape[2] - 1
            seen = visible[n, : last + 1].nonzero().flatten()
            if len(seen):
                keys, values = (x[n][:, seen].repeat_interleave(group, 0) for x in (k, v))
                row_out, row_lse = attend(q[n, :, i, None], keys, values, scale, softcap)
                out[n, :, i], lse[n, :, i] = row_out[:, 0], row_lse[:, 0]
    return out, lse


def normal(*shape: int, dtype: torch.dtype, order: tuple[int, ...] | None = None, spare: int = 0) -> Tensor:
    """Normally distributed; with `order` laid out in that order of its dimensions, rows `spare` elements apart."""
    order = order or tuple(range(len(shape)))
    laid_out = [shape[dim] for dim in order]
    base = torch.randn(*laid_out[:-1], laid_out[-1] + spare).to(dtype)[..., : laid_out[-1]]
    return base.permute([order.index(dim) for dim in range(len(shape))])


def shared_prefix_arguments(
    dtype: torch.dtype,
    branches: int,
    heads: tuple[int, int],
    head_dim: int,
    prefix: int,
    suffix: int,
    *,
    examples: int = 0,
    shuffled: bool = False,
    spare: int = 0,
    softcap: float = 0.0,
) -> dict:
    """`heads` are those of q and of the keys. Lengths are random, and both bounds occur. `shuffled` reads the prefix
    through `visible`, `spare` leaves so many elements between rows, and suffixes lie step after step. Keys that no
    branch may see are NaN."""
    q_heads, kv_heads = heads
    rows, steps = (kv_heads, prefix + 3 * shuffled, head_dim), (branches, kv_heads, suffix, head_dim)
    cuts = torch.rand(max(examples - 1, 0)).mul(prefix + 1).int().sort().values
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([prefix])]).int()
    example = torch.randint(max(examples, 1), (branches,), dtype=torch.int32)
    counts = torch.rand(branches)
    counts[1::3], counts[2::3] = 1, 0
    lengths = counts.roll(1)
    suffix_length = (lengths * suffix).round().int()
    visible = torch.randperm(rows[1])[:prefix].int() if shuffled else None
    k_prefix = normal(*rows, dtype=dtype, order=(1, 0, 2), spare=spare)
    v_prefix = normal(*rows, dtype=dtype, spare=spare)
    k_suffix, v_suffix = (normal(*steps, dtype=dtype, order=(2, 0, 1, 3), spare=spare) for _ in range(2))
    for x in (k_suffix, v_suffix):
        x.masked_fill_((torch.arange(suffix) >= suffix_length[:, None])[:, None, :, None], torch.nan)
    for x in (k_prefix, v_prefix) if shuffled else ():
        x[:, ~torch.isin(torch.arange(rows[1]), visible)] = torch.nan
    return {
        "q": normal(branches, q_heads, head_dim, dtype=dtype, order=(1, 0, 2), spare=spare),
        "k_prefix": k_prefix,
        "v_prefix": v_prefix,
        "prefix_count": (counts * offsets.diff()[example.long()]).round().int(),
        "k_suffix": k_suffix,
        "v_suffix": v_suffix,
        "suffix_length": suffix_length,
        "visible": visible,
        "example": example if examples else None,
        "prefix_offsets": offsets if examples else None,
        "scale": head_dim**-0.5,
        "softcap": softcap,
    }


def masked_arguments(
    dtype: torch.dtype,
    batch: int,
    heads: tuple[int, int],
    queries: int,
    keys: int,
    head_dim: int,
    *,
    share: float = 0.5,
    causal: bool = False,
    spare: int = 0,
    softcap: float = 0.0,
) -> dict:
    """`share` of the keys are visible, the others are NaN; `spare` leaves so many elements between rows."""
    shapes = ((batch, heads[0], queries, head_dim), *[(batch, heads[1], keys, head_dim)] * 2)
    q, k, v = (normal(*shape, dtype=dtype, order=(0, 2, 1, 3), spare=spare) for shape in shapes)
    visible = torch.rand(batch, keys) < share
    for x in (k, v):
        x.masked_fill_(~visible[:, None, :, None], torch.nan)
    return {"q": q, "k": k, "v": v, "visible": visible, "causal": causal, "scale": head_dim**-0.5, "softcap": softcap}


def assert_close(got: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    """Within the tolerances; NaN and infinity in the same places."""
    tolerance = TOLERANCES[got[0].dtype]
    torch.testing.assert_close(got[0].cpu().double(), truth[0], rtol=0, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(got[1].cpu().double(), truth[1], rtol=0, atol=LSE_TOLERANCE, equal_nan=True)
