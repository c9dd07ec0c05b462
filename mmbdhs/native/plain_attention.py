"""Attention in plain PyTorch: the definition of the attention ops, and PyTorch's own SDPA, which has no soft-cap."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float = 0.0) -> Tensor:
    """Attend by SDPA, or by `softmax_attention` where there is a soft-cap.

    q: [Hq, Lq, D].
    k, v: [Hkv, L, D], where Hq is a multiple of Hkv.
    seen: bool [Lq, L]; None for causal attention, where Lq = L.
    scale, softcap: as `softmax_attention` takes them.
    Returns out [Hq, Lq, D] in the dtype of q.
    """
    if softcap:
        seen = q.new_ones(q.shape[1], k.shape[1], dtype=torch.bool).tril() if seen is None else seen
        return softmax_attention(q, k, v, seen, scale, softcap)[0]
    if seen is not None and q.is_cuda:
        # A mask with grouped heads may end in the kernel that writes all scores. Copies of the heads avoid that. The
        # kernel of a CPU takes both, and is faster without copies.
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=grouped
    ).squeeze(0)


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Attend from queries to the keys that they see, with softmax in float32.

    q: [Hq, Lq, D].
    k, v: [Hkv, L, D], where Hq is a multiple of Hkv.
    seen: bool [Lq, L].
    scale, softcap: scores are scale · q·k, and with softcap > 0 softcap · tanh(score / softcap).
    Returns (out [Hq, Lq, D] in the dtype of q; lse float32 [Hq, Lq], the natural log of the sum of exp(scores)).
    """
    group = q.shape[0] // k.shape[0]
    k, v = (x.float().repeat_interleave(group, dim=0) for x in (k, v))
    scores = q.float() @ k.transpose(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # A row that sees nothing has the lse -inf. Subtracting 0 instead gives it weights of 0, not NaN.
    weights = (scores - lse.where(lse > -torch.inf, 0.0)[..., None]).exp()
    return (weights @ v).to(q.dtype), lse
