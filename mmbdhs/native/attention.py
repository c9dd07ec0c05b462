"""The attention ops, which read keys in place: checked, and run by the live backend.

Operands are float32, bfloat16 or float16, and sums are float32. Head sizes are 32 … 256 in steps of 8. Queries may be
grouped: query head h reads key head h // (Hq / Hkv). Tensors may have any strides as long as their last dimension is
contiguous; nothing is copied. Scores are scale · q·k, where scale defaults to 1/√D; with `softcap` > 0 they become
softcap · tanh(score / softcap). A row that sees no key gets the output 0 and the lse −inf. A NaN or an infinity in a
key or a value counts only in rows that see the key. Lengths and indices on a CUDA device are checked too, except while
a graph is captured: a branch whose numbers are out of range then returns NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbdhs.native import backend, checks
from mmbdhs.native.operands import Masked, SharedPrefix, score_factor
from mmbdhs.native.registry import LIBRARY, register

__all__ = ["masked_attention", "shared_prefix_attention"]

_BACKWARD_SCORES = 1 << 24  # how many scores the backward pass recomputes at once, which bounds its memory


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return an empty out and lse, for tracing."""
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@register(fake=lambda *operands: _empty_results(_check_shared_prefix(SharedPrefix(*operands)).q))
def shared_prefix_attention(
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
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend from one query token of each of B branches to keys that branches share and to keys of their own.

    q: [B, Hq, D].
    k_prefix, v_prefix: [Hkv, P, D], the shared keys and values.
    prefix_count: int32 [B]; branch b sees the first prefix_count[b] prefix keys.
    k_suffix, v_suffix: [B, Hkv, S, D], the branches' own keys and values.
    suffix_length: int32 [B]; branch b sees the first suffix_length[b] keys of its suffix.
    visible: int32 [V], the rows of the prefix that are its keys, in this order. Default: all P rows.
    example, prefix_offsets: int32 [B] and int32 [E + 1], given together. The prefixes of E examples follow one another;
        example e has the keys prefix_offsets[e] … prefix_offsets[e + 1], and branch b belongs to example[b].
    scale, softcap: see the module.
    Returns (out [B, Hq, D]; lse float32 [B, Hq], the natural log of the sum of exp(scores)). It has no gradients: a
    backward pass through it raises NotImplementedError.
    """
    operands = _check_shared_prefix(
        SharedPrefix(
            *(q, k_prefix, v_prefix, prefix_count, k_suffix, v_suffix, suffix_length),
            *(visible, example, prefix_offsets, scale, softcap),
        )
    )
    ops = backend.live().ops
    if not ops.lengths_fit(operands):
        checks.lengths(operands)
    return ops.shared_prefix_attention(operands)


def _no_backward(ctx: Any, *_grads: Tensor) -> None:
    raise NotImplementedError("shared_prefix_attention has no gradients, it is for decoding; use masked_attention")


torch.library.register_autograd("mmbdhs::shared_prefix_attention", _no_backward, lib=LIBRARY)


def _check_shared_prefix(a: SharedPrefix) -> SharedPrefix:
    """Check everything but the values of lengths and indices. Returns operands that a backend takes."""
    q = a.q
    branches, _, head_dim = checks.heads("q", q, 3, like=q)
    kv_heads, rows, _ = checks.heads("k_prefix", a.k_prefix, 3, like=q, shape=(None, None, head_dim))
    checks.query_heads(q, kv_heads, "k_prefix")
    checks.heads("v_prefix", a.v_prefix, 3, like=q, shape=(kv_heads, rows, head_dim))
    suffix_rows = checks.heads("k_suffix", a.k_suffix, 4, like=q, shape=(branches, kv_heads, None, head_dim))[2]
    checks.heads("v_suffix", a.v_suffix, 4, like=q, shape=(branches, kv_heads, suffix_rows, head_dim))
    prefix_count = checks.index("prefix_count", a.prefix_count, q, branches)
    suffix_length = checks.index("suffix_length", a.suffix_length, q, branches)
    if (a.example is None) != (a.prefix_offsets is None):
        raise ValueError("example and prefix_offsets: need to be given together, got only one of them")
    example = None if a.example is None else checks.index("example", a.example, q, branches)
    prefix_offsets = None if a.prefix_offsets is None else checks.index("prefix_offsets", a.prefix_offsets, q)
    visible = None if a.visible is None else checks.index("visible", a.visible, q)
    checks.scale(a.scale)
    checks.softcap(a.softcap)
    return SharedPrefix(
        *(q, a.k_prefix, a.v_prefix, prefix_count, a.k_suffix, a.v_suffix, suffix_length),
        *(visible, example, prefix_offsets, a.scale, a.softcap),
    )


@register(fake=lambda *operands: _empty_results(_check_masked(Masked(*operands)).q))
def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend over a sequence with hidden keys, without computing their scores.

    It is meant for a forward pass over a prompt whose image tokens are mostly hidden but must keep their places, where
    a dense mask computes scores only to discard them. The library itself drops hidden tokens before the forward pass.

    q: [N, Hq, Lq, D].
    k, v: [N, Hkv, L, D].
    visible: bool [N, L].
    causal: whether query i sees the keys 0 … L − Lq + i only.
    scale, softcap: see the module.
    Returns (out [N, Hq, Lq, D]; lse float32 [N, Hq, Lq], the natural log of the sum of exp(scores)). Gradients of q, k
    and v recompute the scores.
    """
    operands = _check_masked(Masked(q, k, v, visible, causal, scale, softcap))
    return backend.live().ops.masked_attention(operands)


def _check_masked(a: Masked) -> Masked:
    """Check all arguments. Returns operands that a backend takes."""
    batch, _, queries, head_dim = checks.heads("q", a.q, 4, like=a.q)
    _, kv_heads, keys, _ = checks.heads("k", a.k, 4, like=a.q, shape=(batch, None, None, head_dim))
    checks.query_heads(a.q, kv_heads, "k")
    checks.heads("v", a.v, 4, like=a.q, shape=(batch, kv_heads, keys, head_dim))
    visible = checks.key_mask(a.visible, batch, keys, a.q.device)
    if a.causal and queries > keys:
        raise ValueError(f"q: needs at most as many rows as k if causal, got {queries} over {keys}")
    checks.scale(a.scale)
    checks.softcap(a.softcap)
    return Masked(a.q, a.k, a.v, visible, a.causal, a.scale, a.softcap)


@register(fake=lambda grad_out, grad_lse, *operands: tuple(x.new_empty(x.shape) for x in operands[:3]))
def masked_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v, from scores recomputed over the visible keys alone."""
    delta = (grad_out.float() * out.float()).sum(-1) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # gives a row that sees nothing weights of 0, not NaN
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v))
    factor = score_factor(q, scale)
    for n, mask in enumerate(visible):
        kept = mask.nonzero().flatten()
        row = (q[n], k[n], v[n], grad_out[n], delta[n], lse[n])
        grad_q[n], grad_k[n, :, kept], grad_v[n, :, kept] = _row_backward(*row, kept, causal, factor, softcap)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _row_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    delta: Tensor,
    lse: Tensor,
    kept: Tensor,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of one batch row, a chunk of queries at a time.

    q: [Hq, Lq, D]. k, v: [Hkv, L, D]. kept: int64 [visible], the visible keys.
    """
    kv_heads, (queries, keys) = k.shape[0], (q.shape[1], k.shape[1])
    k, v = k[:, None, kept].float(), v[:, None, kept].float()
    # For products with weights: a key that is not finite makes scores NaN where it is seen, and counts nowhere else.
    finite_k = k.nan_to_num(0.0, 0.0, 0.0)
    # Query heads that share a key head become one dimension: [Hkv, group, Lq, …].
    q, grad_out, delta, lse = (x.unflatten(0, (kv_heads, -1)) for x in (q, grad_out, delta, lse))
    grad_q, grad_k, grad_v = torch.zeros_like(q, dtype=torch.float32), torch.zeros_like(k), torch.zeros_like(v)
    step = max(_BACKWARD_SCORES // max(q.shape[0] * q.shape[1] * len(kept), 1), 1)
    for begin in range(0, queries, step):
        at = slice(begin, begin + step)
        q_part, grad_part = q[:, :, at].float(), grad_out[:, :, at].float()
        scores = q_part @ k.mT * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = (scores - lse[:, :, at, None]).exp()
        grad_scores = weights * (grad_part @ v.mT - delta[:, :, at, None])
        if softcap:
            grad_scores = grad_scores * (1 - (scores / softcap) ** 2)
        if causal:
            hidden = kept > (keys - queries + torch.arange(queries, device=q.device)[at])[:, None]
            weights, grad_scores = (x.masked_fill(hidden, 0.0) for x in (weights, grad_scores))
        grad_q[:, :, at] = grad_scores @ finite_k * scale
        grad_k += (grad_scores.mT @ q_part).sum(1, keepdim=True) * scale
        grad_v += (weights.mT @ grad_part).sum(1, keepdim=True)
    return grad_q.flatten(0, 1), grad_k[:, 0], grad_v[:, 0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, visible, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, visible, *output)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = masked_attention_backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return (*grads, None, None, None, None)


torch.library.register_autograd("mmbdhs::masked_attention", _backward, setup_context=_save, lib=LIBRARY)
