"""Attention ops that read keys where they lie: checked, registered with `torch.library`, run by the live backend.

float32, bfloat16 or float16, accumulated in float32; head sizes 32 … 256 in steps of 8; grouped queries: query head h
reads key head h // (Hq / Hkv). Any strides, as long as the last dimension is contiguous; nothing is copied. Scores are
scale · q·k (scale defaults to 1/√D), with `softcap` > 0 softcap · tanh(score / softcap). A row that sees no key gives
out 0 and lse −inf. Lengths and indices on a CUDA device are checked too, except while a graph is captured: a branch
whose numbers are out of range then comes back as NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmbdhs.native import backend, checks
from mmbdhs.native.registry import LIBRARY, register

__all__ = ["masked_attention", "shared_prefix_attention"]

_BACKWARD_SCORES = 1 << 24  # scores recomputed at once: bounds the memory of the backward pass


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
    """One query token for each of B branches, over keys that branches share and keys of their own.

    q [B, Hq, D]; k_prefix, v_prefix [Hkv, P, D]; k_suffix, v_suffix [B, Hkv, S, D]. Branch b sees the first
    prefix_count[b] (int32 [B]) prefix keys and the first suffix_length[b] (int32 [B]) keys of its suffix.
    visible: int32 [V], the rows of the prefix that are its keys, in this order; all P rows without it.
    example, prefix_offsets: int32 [B] and int32 [E + 1], given together: the prefixes of E examples lie one after the
    other, that of example e at the keys prefix_offsets[e] … prefix_offsets[e + 1], and branch b belongs to example[b].
    Returns (out [B, Hq, D]; lse float32 [B, Hq], the natural log of the sum of exp(scores)), without gradients: a
    backward pass through them raises NotImplementedError.
    """
    return torch.ops.mmbdhs.shared_prefix_attention(
        q,
        k_prefix,
        v_prefix,
        prefix_count,
        k_suffix,
        v_suffix,
        suffix_length,
        visible,
        example,
        prefix_offsets,
        scale,
        softcap,
    )


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention that skips hidden keys: their scores are never computed. Differentiable by recomputation.

    q [N, Hq, Lq, D]; k, v [N, Hkv, L, D]; visible bool [N, L]. With `causal`, query i sees keys 0 … L − Lq + i only.
    Returns (out [N, Hq, Lq, D]; lse float32 [N, Hq, Lq], the natural log of the sum of exp(scores)).
    """
    return torch.ops.mmbdhs.masked_attention(q, k, v, visible, causal, scale, softcap)


def _check_shared_prefix(
    q: Tensor,
    k_prefix: Tensor,
    v_prefix: Tensor,
    prefix_count: Tensor,
    k_suffix: Tensor,
    v_suffix: Tensor,
    suffix_length: Tensor,
    visible: Tensor | None,
    example: Tensor | None,
    prefix_offsets: Tensor | None,
    scale: float | None,
    softcap: float,
) -> tuple:
    """The arguments of a twin, if all but the values of lengths and indices are right."""
    branches, _, head_dim = checks.heads("q", q, 3, like=q)
    kv_heads, rows, _ = checks.heads("k_prefix", k_prefix, 3, like=q, shape=(None, None, head_dim))
    checks.query_heads(q, kv_heads, "k_prefix")
    checks.heads("v_prefix", v_prefix, 3, like=q, shape=(kv_heads, rows, head_dim))
    suffix_rows = checks.heads("k_suffix", k_suffix, 4, like=q, shape=(branches, kv_heads, None, head_dim))[2]
    checks.heads("v_suffix", v_suffix, 4, like=q, shape=(branches, kv_heads, suffix_rows, head_dim))
    prefix_count = checks.index("prefix_count", prefix_count, q, branches)
    suffix_length = checks.index("suffix_length", suffix_length, q, branches)
    if (example is None) != (prefix_offsets is None):
        raise ValueError("example and prefix_offsets must be given together, got only one of them")
    example = None if example is None else checks.index("example", example, q, branches)
    prefix_offsets = None if prefix_offsets is None else checks.index("prefix_offsets", prefix_offsets, q)
    visible = None if visible is None else checks.index("visible", visible, q)
    scale, softcap = checks.scale(scale, head_dim), checks.softcap(softcap)
    prefix = (q, k_prefix, v_prefix, prefix_count)
    return (*prefix, k_suffix, v_suffix, suffix_length, visible, example, prefix_offsets, scale, softcap)


def _check_masked(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, causal: bool, scale: float | None, softcap: float
) -> tuple:
    """The arguments of a twin."""
    batch, _, queries, head_dim = checks.heads("q", q, 4, like=q)
    _, kv_heads, keys, _ = checks.heads("k", k, 4, like=q, shape=(batch, None, None, head_dim))
    checks.query_heads(q, kv_heads, "k")
    checks.heads("v", v, 4, like=q, shape=(batch, kv_heads, keys, head_dim))
    visible = checks.key_mask(visible, batch, keys, q.device)
    if causal and queries > keys:
        raise ValueError(f"q must have at most as many rows as k if causal, got {queries} over {keys}")
    return q, k, v, visible, causal, checks.scale(scale, head_dim), checks.softcap(softcap)


def _shared_prefix_attention(*arguments) -> tuple[Tensor, Tensor]:
    checked, twin = _check_shared_prefix(*arguments), backend.live().twin
    _, k_prefix, _, prefix_count, k_suffix, _, *indices, _, _ = checked
    lengths = (prefix_count, *indices, k_prefix.shape[1], k_suffix.shape[2])
    if not twin.lengths_fit(*lengths):
        checks.lengths(*lengths)
    return twin.shared_prefix_attention(*checked)


def _masked_attention(*arguments) -> tuple[Tensor, Tensor]:
    return backend.live().twin.masked_attention(*_check_masked(*arguments))


def _masked_attention_backward(
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
    """Gradients of q, k and v, from scores computed again over the visible keys alone."""
    delta = (grad_out.float() * out.float()).sum(-1) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a row that sees nothing has weights of 0, not NaN
    grads = tuple(torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v))
    for n, mask in enumerate(visible):
        kept = mask.nonzero().flatten()
        rows = (x[n] for x in (q, k, v, grad_out, delta, lse))
        found = _row_backward(*rows, kept, causal, checks.scale(scale, q.shape[-1]), softcap)
        grads[0][n] = found[0]
        grads[1][n, :, kept], grads[2][n, :, kept] = found[1:]
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))


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
    """One batch row, a chunk of queries at a time: q [Hq, Lq, D], k, v [Hkv, L, D], kept int64 [visible]."""
    kv_heads, (queries, keys) = k.shape[0], (q.shape[1], k.shape[1])
    k, v = k[:, None, kept].float(), v[:, None, kept].float()
    # Query heads that share a key head lie side by side: [Hkv, group, Lq, …].
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
        if causal:
            last = keys - queries + torch.arange(queries, device=q.device)[at]
            weights = weights.masked_fill(kept > last[:, None], 0.0)
        grad_scores = weights * (grad_part @ v.mT - delta[:, :, at, None])
        if softcap:
            grad_scores = grad_scores * (1 - (scores / softcap) ** 2)
        grad_q[:, :, at] = grad_scores @ k * scale
        grad_k += (grad_scores.mT @ q_part).sum(1, keepdim=True) * scale
        grad_v += (weights.mT @ grad_part).sum(1, keepdim=True)
    return grad_q.flatten(0, 1), grad_k[:, 0], grad_v[:, 0]


def _fake_shared_prefix_attention(*arguments):
    return _fake_results(_check_shared_prefix(*arguments)[0])


def _fake_masked_attention(*arguments):
    return _fake_results(_check_masked(*arguments)[0])


def _fake_results(q):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _fake_masked_attention_backward(_grad_out, _grad_lse, *operands):
    return tuple(x.new_empty(x.shape) for x in operands[:3])


def _no_backward(ctx, *_grads):
    raise NotImplementedError("shared_prefix_attention has no gradients: it is for decoding; masked_attention has some")


def _save(ctx, inputs, output) -> None:
    q, k, v, visible, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, visible, *output)


def _backward(ctx, grad_out: Tensor, grad_lse: Tensor):
    grads = torch.ops.mmbdhs.masked_attention_backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return (*grads, None, None, None, None)


_shared_prefix = register(
    "shared_prefix_attention(Tensor q, Tensor k_prefix, Tensor v_prefix, Tensor prefix_count, Tensor k_suffix, "
    "Tensor v_suffix, Tensor suffix_length, Tensor? visible, Tensor? example, Tensor? prefix_offsets, float? scale, "
    "float softcap) -> (Tensor, Tensor)",
    _shared_prefix_attention,
    _fake_shared_prefix_attention,
)
torch.library.register_autograd(_shared_prefix, _no_backward, lib=LIBRARY)
register(
    "masked_attention_backward(Tensor grad_out, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor visible, "
    "Tensor out, Tensor lse, bool causal, float? scale, float softcap) -> (Tensor, Tensor, Tensor)",
    _masked_attention_backward,
    _fake_masked_attention_backward,
)
_masked = register(
    "masked_attention(Tensor q, Tensor k, Tensor v, Tensor visible, bool causal, float? scale, float softcap) "
    "-> (Tensor, Tensor)",
    _masked_attention,
    _fake_masked_attention,
)
torch.library.register_autograd(_masked, _backward, setup_context=_save, lib=LIBRARY)
