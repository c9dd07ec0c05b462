"""Log-probabilities of given tokens from hidden states, without a tensor of tokens × vocabulary.

With z the logit of the label and r the log-sum-exp of all other logits, log p = log σ(z − r). Its gradient is (1 − p)
times the difference between the label's row of the head and the mean of the other rows, weighted by their softmax among
themselves. In this form there is no cancellation when p is near 1, as it is for most tokens of a trained model.

The vocabulary is split, not the tokens. So each row of the weight's gradient is one product over all tokens, rounded
once in any dtype, and needs no float32 accumulator of the weight's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmbdhs import checks

# Default number of logits at a time. A CPU is fastest while they stay in its cache (4 MiB). A GPU wants large products
# (64 MiB), and so does a head that is called as a whole, which reads all its weights for every chunk.
CACHED_LOGITS = 1 << 20
CHUNK_LOGITS = 1 << 24
# Bounds of a chunk of the vocabulary: sums over more rows of the weight might overflow float16.
LEAST_ENTRIES, MOST_ENTRIES = 512, 1 << 14
_MM_HAS_OUT_DTYPE = "dtype_out" in torch.ops.aten.mm.overloads()


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_vocabulary: int | None = None,
) -> Tensor:
    """log softmax((hidden · weightᵀ + bias) / temperature)[labels] in nats: float32 [T], float64 for float64.

    hidden: float [T, H]. Products are taken in its dtype, or in autocast's; sums are float32.
    weight: float [V, H].
    labels: int64 [T], in [0, V).
    bias: float [V].
    temperature: divides the logits.
    chunk_vocabulary: how many of the V entries have logits at a time; by default as many as take 64 MiB (CPU: 4 MiB),
        from 512 to 16,384. Besides its result, a call holds less than two such chunks and some [T, H].

    Where hidden needs a gradient, forward computes it up to the factor that backward brings. Backward recomputes logits
    only for the gradients of weight and bias, so a frozen head costs no third product. There is no second derivative.
    Raises ValueError or TypeError that names the argument.
    """
    _check(hidden, labels, temperature)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight: needs shape [V, {hidden.shape[1]}], got {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: needs shape [{len(weight)}], got {list(bias.shape)}")
    _check_labels(len(weight), labels)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    at_once = CACHED_LOGITS if kind == "cpu" else CHUNK_LOGITS
    width = min(max(at_once // max(1, len(hidden)), LEAST_ENTRIES), MOST_ENTRIES)
    width = _chunk("chunk_vocabulary", chunk_vocabulary, width)
    return _apply(hidden, weight, bias, labels, temperature, width)


def logps_through(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """`chunked_logps` for a head that is more than a linear layer: soft-capped, quantised, with an adapter.

    head: hidden [n, H] -> logits [n, V], each token by itself. It is called for each chunk of tokens, again in
        backward, and once for the first token alone, to learn V.
    hidden: float [T, H].
    labels: int64 [T], in [0, V).
    temperature: divides the logits.
    chunk_tokens: how many tokens have logits at a time; by default as many as take 64 MiB in float32.

    Returns float32 [T]. Raises ValueError or TypeError that names the argument.
    """
    _check(hidden, labels, temperature)
    with torch.no_grad():
        vocabulary = head(hidden[:1]).shape[-1]
    _check_labels(vocabulary, labels)

    def logps(hidden: Tensor, labels: Tensor) -> Tensor:
        (logits,) = checks.widened({"head(hidden)": head(hidden)})
        return -F.cross_entropy(logits / temperature, labels, reduction="none")

    size = _chunk("chunk_tokens", chunk_tokens, max(1, CHUNK_LOGITS // vocabulary))
    chunks = zip(hidden.split(size), labels.split(size), strict=True)
    return torch.cat([checkpoint(logps, *chunk, use_reentrant=False) for chunk in chunks])


# Tracing would unroll the loop over the vocabulary into a graph of hundreds of products.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _apply(hidden: Tensor, *others: Any) -> Tensor:
    learns = torch.is_grad_enabled() and hidden.requires_grad
    return _ChunkedLogps.apply(hidden, *others, learns)


class _ChunkedLogps(torch.autograd.Function):
    """The chunked head; columns [T, 1] are in the wide dtype, which is float32, or float64 for float64."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        width: int,
        learns: bool,
    ) -> Tensor:
        wide = _wide(hidden)
        lowest = torch.finfo(wide).min  # not −∞: its differences are NaN
        at_label, top, others = (hidden.new_full((len(hidden), 1), x, dtype=wide) for x in (torch.nan, lowest, 0))
        mean = torch.zeros_like(hidden, dtype=wide) if learns else None  # of the other rows; a sum until it is divided
        for part, logits in _logits(hidden, weight, bias, temperature, width):
            index, inside = _label_columns(labels, part)
            found = logits.gather(1, index)
            at_label = torch.where(inside, found, at_label)
            logits.scatter_(1, index, found.masked_fill(inside, -torch.inf))
            higher = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            shrunk, top = torch.exp(top - higher), higher
            weights = logits.sub_(top).exp_()
            others.mul_(shrunk).add_(weights.sum(dim=1, keepdim=True))
            if mean is not None:
                _add_product(weights.to(hidden.dtype), weight[part].to(hidden.dtype), mean.mul_(shrunk))
        rest = (top + others.log()).clamp_min_(lowest)
        slope = torch.sigmoid(rest - at_label).div_(temperature)  # (1 − p) / temperature
        if mean is not None:
            mean = mean.div_(others.clamp_min_(1)).sub_(weight[labels]).mul_(-slope).to(hidden.dtype)
        again = hidden if any(ctx.needs_input_grad[1:3]) else None  # for a frozen head, backward needs no logits
        ctx.save_for_backward(again, weight, bias, labels, rest, slope, mean)
        ctx.temperature, ctx.width = temperature, width
        return F.logsigmoid(at_label - rest).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, rest, slope, direction = ctx.saved_tensors
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_hidden = (grad[:, None] * direction).to(direction.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
        if ctx.needs_input_grad[2]:
            of_bias = slope.new_empty(len(bias), 1)
        if of_weight is None and of_bias is None:
            return of_hidden, *[None] * 6
        pull = -grad[:, None] * slope
        pulled = (pull * hidden).to(hidden.dtype)
        for part, logits in _logits(hidden, weight, bias, ctx.temperature, ctx.width):
            index, inside = _label_columns(labels, part)
            weights = logits.sub_(rest).exp_()
            weights.scatter_(1, index, weights.gather(1, index).masked_fill(inside, -1))
            if of_bias is not None:
                _product(weights.T, pull, out=of_bias[part])
            if of_weight is not None:
                _product(weights.to(hidden.dtype).T, pulled, out=of_weight[part])
        of_bias = None if of_bias is None else of_bias.squeeze(1).to(bias.dtype)
        return of_hidden, of_weight, of_bias, *[None] * 4


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, width: int
) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the vocabulary with their logits [T, part], in the wide dtype. The caller may overwrite the logits: one
    buffer serves all parts."""
    buffer = hidden.new_empty(len(hidden) * min(width, len(weight)), dtype=_wide(hidden))
    for start in range(0, len(weight), width):
        part = slice(start, min(start + width, len(weight)))
        shape = len(hidden), part.stop - start
        logits = buffer[: shape[0] * shape[1]].view(shape)
        _product(hidden, weight[part].to(hidden.dtype).T, out=logits)
        if bias is not None:
            logits.add_(bias[part])
        if temperature != 1:
            logits.div_(temperature)
        yield part, logits


def _label_columns(labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """The column of each label in a part of the vocabulary (any column if the label is in another part), and whether
    the label is in this part; both [T, 1]."""
    inside = (labels >= part.start) & (labels < part.stop)
    return (labels - part.start).clamp(0, part.stop - part.start - 1)[:, None], inside[:, None]


# Products with `out` ignore autocast, under which backward may run.
def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    sums = _sums(left, out)
    if out.dtype == left.dtype or sums:
        torch.mm(left, right, out=out, **sums)
    else:
        out.copy_(torch.mm(left, right))


def _add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:  # addmm with out_dtype takes no float32 addend in PyTorch 2.8
        out.add_(torch.mm(left, right, **_sums(left, out)))


def _sums(left: Tensor, out: Tensor) -> dict[str, Any]:
    """The argument by which 16-bit products keep their float32 sums. PyTorch has it on CUDA alone, from 2.8 on."""
    halves = left.dtype in (torch.float16, torch.bfloat16)
    kept = left.is_cuda and halves and out.dtype == torch.float32 and _MM_HAS_OUT_DTYPE
    return {"out_dtype": torch.float32} if kept else {}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunk(name: str, chosen: int | None, default: int) -> int:
    if chosen is not None and chosen < 1:
        raise ValueError(f"{name}: needs a number of at least 1, got {chosen}")
    return chosen or default


def _check(hidden: Tensor, labels: Tensor, temperature: float) -> None:
    if not hidden.is_floating_point():
        raise TypeError(f"hidden: needs a floating-point tensor, got {hidden.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: needs int64, got {labels.dtype}")
    if hidden.dim() != 2:
        raise ValueError(f"hidden: needs shape [T, H], got {list(hidden.shape)}")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels: needs shape [{len(hidden)}], got {list(labels.shape)}")
    checks.above_zero(temperature=temperature)


def _check_labels(vocabulary: int, labels: Tensor) -> None:
    inside = (labels >= 0) & (labels < vocabulary)
    checks.require(checks.Rule("labels", f"tokens of a vocabulary of {vocabulary}", labels, inside))
