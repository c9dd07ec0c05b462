"""Attention in plain PyTorch: the definition of the attention ops, also used where SDPA has no soft-cap."""

from __future__ import annotations

import torch
from torch import Tensor


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
