"""Attention in plain PyTorch: the definition of the ops, and what runs where SDPA has no soft-cap."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """q [Hq, Lq, D] over k, v [Hkv, L, D] where `seen` [Lq, L] -> out [Hq, Lq, D], lse float32 [Hq, Lq]."""
    group = q.shape[0] // k.shape[0]
    k, v = (x.float().repeat_interleave(group, dim=0) for x in (k, v))
    scores = q.float() @ k.transpose(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # Where nothing is seen, lse is -inf: subtracting 0 instead leaves weights of 0, not NaN.
    weights = (scores - lse.where(lse > -torch.inf, 0.0)[..., None]).exp()
    return (weights @ v).to(q.dtype), lse
