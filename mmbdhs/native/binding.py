"""The compiled ops, with the functions and arguments of `reference`: they make room for the results and pass
pointers. Inputs are taken as valid where those are; `mmbdhs.native.ops` is the checked door.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from mmbdhs.native import _extension, reference

_LOG = logging.getLogger("mmbdhs")
_UNSIGNED = (1 << 64) - 1
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/attention/attention.h
_BYTES_PER_SENTENCE = 16  # a low guess; a text with shorter sentences is split twice


def sample_visible(
    seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float
) -> tuple[Tensor, Tensor] | None:
    """Native `ops.sample_visible`; None where a number of tokens is negative."""
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
    if not (keys.is_cuda and hasattr(_extension, "count_visible_cuda")):
        drawn = sample_visible(seed, keys.cpu(), iteration, tokens.cpu(), threshold)
        return drawn and tuple(part.to(keys.device) for part in drawn)
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
        table = torch.empty(capacity, 4, dtype=torch.int64)
        results = (capacity, table.data_ptr(), sentence_offsets.data_ptr())
        needed = _extension.split_sentences(text.data_ptr(), offsets.data_ptr(), len(offsets) - 1, *results)
    return table[:needed].clone(), sentence_offsets


def sentence_ends(text: Tensor, offsets: Tensor, begins: Tensor, final: Tensor) -> Tensor:
    """Native `ops.sentence_ends`."""
    ends = torch.empty_like(begins)
    inputs = (text.data_ptr(), offsets.data_ptr(), begins.data_ptr(), final.data_ptr(), len(begins))
    _extension.sentence_ends(*inputs, ends.data_ptr())
    return ends


def draw_splices(
    seed: int,
    keys: Tensor,
    iteration: int,
    sentences: Tensor,
    swappable: Tensor,
    choices: Tensor,
    swapped_low: Tensor,
    swapped_choices: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Native `ops.draw_splices`; None where a number is out of range."""
    swapped, choice = torch.empty_like(swappable), torch.empty_like(choices)
    columns = (sentences, swappable, choices, swapped_low, swapped_choices)
    pointers = (column.data_ptr() for column in columns)
    results = (swapped.data_ptr(), choice.data_ptr())
    fit = _extension.draw_splices(seed & _UNSIGNED, keys.data_ptr(), iteration, *pointers, len(keys), *results)
    return (swapped, choice) if fit else None


def join_splices(
    text: Tensor,
    offsets: Tensor,
    table: Tensor,
    sentence_offsets: Tensor,
    swapped: Tensor,
    kept_bytes: Tensor,
    completions: Tensor,
    completion_offsets: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Native `ops.join_splices`; None where the splices do not fit their texts."""
    most = len(text) + len(table) + len(completions)  # a swapped sentence may grow by a byte
    joined = text.new_empty(most + _extension.COPY_SLACK)
    joined_offsets = torch.empty_like(offsets)
    fields = (
        *(text.data_ptr(), len(text), offsets.data_ptr(), len(offsets) - 1, table.data_ptr(), len(table)),
        *(x.data_ptr() for x in (sentence_offsets, swapped, kept_bytes)),
        *(completions.data_ptr(), len(completions)),
        *(x.data_ptr() for x in (completion_offsets, joined, joined_offsets)),
    )
    size = _extension.join_splices(fields)
    return None if size < 0 else (joined[:size], joined_offsets)


def _plain_elsewhere(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`op`, or its plain twin if q is on a device that the extension has no kernels for."""

    @functools.wraps(op)
    def run(q: Tensor, *rest: object, **named: object) -> tuple[Tensor, Tensor]:
        if not q.is_cpu and not (q.is_cuda and hasattr(_extension, f"{op.__name__}_cuda")):
            _announce_plain_attention("CUDA" if q.is_cuda else q.device.type)
            return getattr(reference, op.__name__)(q, *rest, **named)
        return op(q, *rest, **named)

    return run


@functools.cache
def _announce_plain_attention(device: str) -> None:
    _LOG.warning("the extension was built without %s: attention there runs in plain PyTorch, slowly", device)


def lengths_fit(
    prefix_count: Tensor,
    suffix_length: Tensor,
    visible: Tensor | None,
    example: Tensor | None,
    prefix_offsets: Tensor | None,
    prefix_rows: int,
    suffix_rows: int,
) -> bool:
    """Whether `checks.lengths` would pass. While a CUDA graph is captured the kernels have to look themselves."""
    if not prefix_count.is_cpu:
        return prefix_count.is_cuda and torch.cuda.is_current_stream_capturing()
    return _extension.lengths_fit(
        prefix_count.data_ptr(),
        suffix_length.data_ptr(),
        len(prefix_count),
        0 if visible is None else visible.data_ptr(),
        prefix_rows if visible is None else len(visible),
        0 if example is None else example.data_ptr(),
        0 if prefix_offsets is None else prefix_offsets.data_ptr(),
        0 if prefix_offsets is None else len(prefix_offsets) - 1,
        prefix_rows,
        suffix_rows,
    )


@_plain_elsewhere
def shared_prefix_attention(
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
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Native `attention.shared_prefix_attention`."""
    branches, q_heads, head_dim = q.shape
    kv_heads, prefix_rows, _ = k_prefix.shape
    out, lse = _attention_results(q)
    tensors = (q, k_prefix, v_prefix, k_suffix, v_suffix, out, lse, prefix_count, suffix_length)
    fields = (
        *(x.data_ptr() for x in tensors),
        *(0 if x is None else x.data_ptr() for x in (visible, example, prefix_offsets)),
        _DTYPES[q.dtype],
        *(branches, q_heads, kv_heads, head_dim, prefix_rows),
        prefix_rows if visible is None else len(visible),
        k_suffix.shape[2],
        1 if prefix_offsets is None else len(prefix_offsets) - 1,
        *(stride for x in tensors[:5] for stride in x.stride()[:-1]),
    )
    _attend("shared_prefix_attention", fields, scale, softcap, q.device)
    return out, lse


@_plain_elsewhere
def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, causal: bool, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Native `attention.masked_attention`."""
    batch, q_heads, queries, head_dim = q.shape
    out, lse = _attention_results(q)
    fields = (
        *(x.data_ptr() for x in (q, k, v, out, lse, visible)),
        _DTYPES[q.dtype],
        *(batch, q_heads, k.shape[1], queries, k.shape[2], head_dim, causal),
        *(stride for x in (q, k, v) for stride in x.stride()[:-1]),
    )
    _attend("masked_attention", fields, scale, softcap, q.device)
    return out, lse


def _attend(op: str, fields: tuple[int, ...], scale: float, softcap: float, device: torch.device) -> None:
    if device.type != "cuda":
        getattr(_extension, op)(fields, scale, softcap, torch.get_num_threads())
        return
    with torch.cuda.device(device):
        bytes_needed = getattr(_extension, f"{op}_workspace")(fields)
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream().cuda_stream
        getattr(_extension, f"{op}_cuda")(fields, scale, softcap, workspace.data_ptr(), stream)


def _attention_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for out and lse."""
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:-1], dtype=torch.float32)
