"""The native backend: the functions of `reference` with the same arguments, run by the compiled extension.

Each one allocates its results and passes pointers. They take their inputs as valid, as those of `reference` do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from mmbdhs.native import _extension, reference  # type: ignore[attr-defined]
from mmbdhs.native.backend import kernel_obstacle
from mmbdhs.native.operands import Masked, SharedPrefix, SpliceDraws, Splices, score_factor
from mmbdhs.native.sentence_rule import COLUMNS

_LOG = logging.getLogger("mmbdhs")
_UNSIGNED = (1 << 64) - 1
_DTYPES = {getattr(torch, name): number for name, number in _extension.dtypes().items()}
_BYTES_PER_SENTENCE = 16  # a low guess; a text with shorter sentences is split a second time


def sample_visible(
    seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float
) -> tuple[Tensor, Tensor] | None:
    """Native `ops.sample_visible`. Returns None if a number of tokens is negative."""
    if not keys.is_cpu:
        return _sample_visible_on_device(seed, keys, iteration, tokens, threshold)
    examples, visible_from = len(keys), reference.visible_from(threshold)
    total = _extension.total_tokens(tokens.data_ptr(), examples)
    if total < 0:
        return None
    indices = torch.empty(total, dtype=torch.int32)
    offsets = torch.empty(examples + 1, dtype=torch.int64)
    inputs = (seed & _UNSIGNED, keys.data_ptr(), iteration, tokens.data_ptr(), examples, visible_from)
    count = _extension.sample_visible(*inputs, indices.data_ptr(), offsets.data_ptr())
    return indices[:count].clone(), offsets


def _sample_visible_on_device(
    seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float
) -> tuple[Tensor, Tensor] | None:
    if kernel_obstacle(keys.device):
        drawn = sample_visible(seed, keys.cpu(), iteration, tokens.cpu(), threshold)
        return None if drawn is None else (drawn[0].to(keys.device), drawn[1].to(keys.device))
    if (tokens < 0).any():
        return None
    with torch.cuda.device(keys.device):
        stream = torch.cuda.current_stream().cuda_stream
        visible_from = reference.visible_from(threshold)
        inputs = (seed & _UNSIGNED, keys.data_ptr(), iteration, tokens.data_ptr(), len(keys), visible_from)
        offsets = keys.new_zeros(len(keys) + 1)
        counts = torch.empty_like(keys)
        _extension.count_visible_cuda(*inputs, counts.data_ptr(), stream)
        torch.cumsum(counts, 0, out=offsets[1:])
        indices = keys.new_empty(int(offsets[-1]), dtype=torch.int32)
        _extension.write_visible_cuda(*inputs, offsets.data_ptr(), indices.data_ptr(), stream)
    return indices, offsets


def random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    """Native `ops.random_uniform`."""
    numbers = torch.empty(len(keys), count, dtype=torch.float64)
    place = (purpose, iteration, sentences.data_ptr())
    _extension.random_uniform(seed & _UNSIGNED, keys.data_ptr(), *place, len(keys), count, numbers.data_ptr())
    return numbers


def split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Native `ops.split_sentences`."""
    sentence_offsets = torch.empty_like(offsets)
    needed = len(text) // _BYTES_PER_SENTENCE + len(offsets)
    capacity = -1
    while needed > capacity:
        capacity = needed
        table = torch.empty(capacity, len(COLUMNS), dtype=torch.int64)
        results = (capacity, table.data_ptr(), sentence_offsets.data_ptr())
        needed = _extension.split_sentences(text.data_ptr(), offsets.data_ptr(), len(offsets) - 1, *results)
    return table[:needed].clone(), sentence_offsets


def sentence_ends(text: Tensor, offsets: Tensor, final: Tensor) -> Tensor:
    """Native `ops.sentence_ends`."""
    ends = torch.empty(len(final), dtype=torch.int64)
    inputs = (text.data_ptr(), offsets.data_ptr(), final.data_ptr(), len(final))
    _extension.sentence_ends(*inputs, ends.data_ptr())
    return ends


def draw_splices(draws: SpliceDraws) -> tuple[Tensor, Tensor] | None:
    """Native `ops.draw_splices`. Returns None if a number is out of range."""
    swapped, choice = torch.empty_like(draws.swappable), torch.empty_like(draws.choices)
    columns = (draws.sentences, draws.swappable, draws.choices, draws.swapped_choices)
    address = (draws.seed & _UNSIGNED, draws.keys.data_ptr(), draws.iteration)
    pointers = (x.data_ptr() for x in (swapped, choice))
    fit = _extension.draw_splices(*address, *(x.data_ptr() for x in columns), len(draws.keys), *pointers)
    return (swapped, choice) if fit else None


def join_splices(splices: Splices) -> tuple[Tensor, Tensor] | None:
    """Native `ops.join_splices`. Returns None if the splices do not fit their texts."""
    text, completions = splices.text, splices.completions
    joined = text.new_empty(len(text) + len(splices.table) + len(completions))  # a swap may add a byte to a sentence
    joined_offsets = torch.empty_like(splices.offsets)
    fields = {
        **{name: tensor.data_ptr() for name, tensor in splices._asdict().items()},
        "text_size": len(text),
        "rows": len(splices.offsets) - 1,
        "sentences": len(splices.table),
        "completions_size": len(completions),
        "joined": joined.data_ptr(),
        "joined_offsets": joined_offsets.data_ptr(),
    }
    size = _extension.join_splices(fields)
    return None if size < 0 else (joined[:size], joined_offsets)


Operands = TypeVar("Operands", SharedPrefix, Masked)


def _plain_elsewhere(
    op: Callable[[Operands], tuple[Tensor, Tensor]],
) -> Callable[[Operands], tuple[Tensor, Tensor]]:
    """Run `op`, or its reference implementation if q is on a device that the extension has no kernels for."""

    @functools.wraps(op)
    def run(operands: Operands) -> tuple[Tensor, Tensor]:
        if not operands.q.is_cpu and (obstacle := kernel_obstacle(operands.q.device)):
            _announce_plain_attention(obstacle)
            return getattr(reference, op.__name__)(operands)
        return op(operands)

    return run


@functools.cache
def _announce_plain_attention(obstacle: str) -> None:
    _LOG.warning("%s: attention there runs in plain PyTorch, slowly", obstacle)


def lengths_fit(operands: SharedPrefix) -> bool:
    """Whether `checks.lengths` would pass. While a CUDA graph is captured the kernels have to look themselves."""
    a = operands
    if not a.prefix_count.is_cpu:
        return a.prefix_count.is_cuda and torch.cuda.is_current_stream_capturing()
    return _extension.lengths_fit(
        prefix_count=a.prefix_count.data_ptr(),
        suffix_length=a.suffix_length.data_ptr(),
        branches=len(a.prefix_count),
        visible=_pointer(a.visible),
        prefix_keys=a.prefix_keys,
        example=_pointer(a.example),
        prefix_offsets=_pointer(a.prefix_offsets),
        examples=0 if a.prefix_offsets is None else len(a.prefix_offsets) - 1,
        prefix_rows=a.k_prefix.shape[1],
        suffix_rows=a.k_suffix.shape[2],
    )


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@_plain_elsewhere
def shared_prefix_attention(operands: SharedPrefix) -> tuple[Tensor, Tensor]:
    """Native `attention.shared_prefix_attention`."""
    a = operands
    out, lse = _attention_results(a.q)
    branches, q_heads, head_dim = a.q.shape
    kv_heads, prefix_rows, _ = a.k_prefix.shape
    q_branch, q_head, _ = a.q.stride()
    kp_head, kp_row, _ = a.k_prefix.stride()
    vp_head, vp_row, _ = a.v_prefix.stride()
    ks_branch, ks_head, ks_row, _ = a.k_suffix.stride()
    vs_branch, vs_head, vs_row, _ = a.v_suffix.stride()
    # fmt: off
    fields = {
        "q": a.q.data_ptr(), "out": out.data_ptr(), "lse": lse.data_ptr(),
        "k_prefix": a.k_prefix.data_ptr(), "v_prefix": a.v_prefix.data_ptr(),
        "k_suffix": a.k_suffix.data_ptr(), "v_suffix": a.v_suffix.data_ptr(),
        "prefix_count": a.prefix_count.data_ptr(), "suffix_length": a.suffix_length.data_ptr(),
        "visible": _pointer(a.visible), "example": _pointer(a.example), "prefix_offsets": _pointer(a.prefix_offsets),
        "dtype": _DTYPES[a.q.dtype], "branches": branches, "q_heads": q_heads, "kv_heads": kv_heads,
        "head_dim": head_dim, "prefix_rows": prefix_rows, "suffix_rows": a.k_suffix.shape[2],
        "prefix_keys": prefix_rows if a.visible is None else len(a.visible),
        "examples": 1 if a.prefix_offsets is None else len(a.prefix_offsets) - 1,
        "q_branch": q_branch, "q_head": q_head,
        "kp_head": kp_head, "kp_row": kp_row, "vp_head": vp_head, "vp_row": vp_row,
        "ks_branch": ks_branch, "ks_head": ks_head, "ks_row": ks_row,
        "vs_branch": vs_branch, "vs_head": vs_head, "vs_row": vs_row,
    }
    # fmt: on
    _attend("shared_prefix_attention", fields, a)
    return out, lse


@_plain_elsewhere
def masked_attention(operands: Masked) -> tuple[Tensor, Tensor]:
    """Native `attention.masked_attention`."""
    q, k, v, visible, causal, _, _ = operands
    out, lse = _attention_results(q)
    batch, q_heads, queries, head_dim = q.shape
    q_batch, q_head, q_row, _ = q.stride()
    k_batch, k_head, k_row, _ = k.stride()
    v_batch, v_head, v_row, _ = v.stride()
    # fmt: off
    fields = {
        "q": q.data_ptr(), "k": k.data_ptr(), "v": v.data_ptr(), "visible": visible.data_ptr(),
        "out": out.data_ptr(), "lse": lse.data_ptr(),
        "dtype": _DTYPES[q.dtype], "batch": batch, "q_heads": q_heads, "kv_heads": k.shape[1],
        "queries": queries, "keys": k.shape[2], "head_dim": head_dim, "causal": causal,
        "q_batch": q_batch, "q_head": q_head, "q_row": q_row,
        "k_batch": k_batch, "k_head": k_head, "k_row": k_row,
        "v_batch": v_batch, "v_head": v_head, "v_row": v_row,
    }
    # fmt: on
    _attend("masked_attention", fields, operands)
    return out, lse


def _attend(op: str, fields: dict[str, int], operands: SharedPrefix | Masked) -> None:
    """Run the op of the extension for the device of q. `fields` belong to its struct in csrc/attention/attention.h."""
    device, numbers = operands.q.device, (score_factor(operands.q, operands.scale), operands.softcap)
    if device.type != "cuda":
        getattr(_extension, op)(fields, *numbers, torch.get_num_threads())
        return
    with torch.cuda.device(device):
        bytes_needed = getattr(_extension, f"{op}_workspace")(fields)
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream().cuda_stream
        getattr(_extension, f"{op}_cuda")(fields, *numbers, workspace.data_ptr(), stream)


def _attention_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate out and lse."""
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:-1], dtype=torch.float32)
