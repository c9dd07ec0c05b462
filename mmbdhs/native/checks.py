"""Checks of op arguments: each returns what it checked, or raises an error that names the argument.

TypeError for a wrong dtype, ValueError for everything else.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native.reference import ADDRESS_LAYOUT, COUNTERPARTS

CPU = torch.device("cpu")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def tensor(
    name: str, value: Tensor, dtype: torch.dtype, *, rows: int | None = None, device: torch.device = CPU
) -> Tensor:
    """`value`, contiguous, if it has this dtype, one dimension, this device and (if given) number of rows."""
    present(name, value)
    if value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(value.shape)}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name} must have {rows} row(s), got {len(value)}")
    if value.device != device:
        raise ValueError(f"{name} must be on device {device}, got {value.device}")
    return value.contiguous()


def present(name: str, value: Tensor | None) -> None:
    """`value` is there: the dispatcher lets None through as a tensor that is not defined."""
    if value is None:
        raise TypeError(f"{name} must be a tensor, got None")


def bounds(name: str, offsets: Tensor, *, rows: int | None = None) -> Tensor:
    """`offsets`, contiguous, if there is one more of them than `rows` (any number but 0 if None)."""
    offsets = tensor(name, offsets, torch.int64)
    if len(offsets) == 0 or (rows is not None and len(offsets) != rows + 1):
        needed = "at least 1 entry" if rows is None else f"{rows + 1} entries"
        raise ValueError(f"{name} must have {needed}, got {len(offsets)}")
    return offsets


def ragged(name: str, offsets: Tensor, total: int) -> Tensor:
    """`offsets`, contiguous, if they rise from 0 to `total`."""
    offsets = bounds(name, offsets)
    numbers = offsets.numpy()
    if numbers[0] != 0 or numbers[-1] != total or (numbers[1:] < numbers[:-1]).any():
        raise ValueError(f"{name} must rise from 0 to {total}, got {np.array2string(numbers, threshold=8)}")
    return offsets


def at_least_zero(name: str, values: Tensor) -> Tensor:
    """`values` if none is negative."""
    numbers = values.cpu().numpy()
    if len(numbers) and (lowest := numbers.min()) < 0:
        raise ValueError(f"{name} must not be negative, got {lowest} at row {numbers.argmin()}")
    return values


def number(name: str, value: int, limit: int) -> int:
    """`value` if 0 ≤ value < limit."""
    if not 0 <= value < limit:
        raise ValueError(f"{name} must be in 0 … {limit - 1}, got {value}")
    return value


def address(keys: Tensor, iteration: int, sentences: Tensor) -> tuple[Tensor, int, Tensor]:
    """The parts of N random addresses: keys int64 [N], iteration, sentences int32 [N]."""
    keys = tensor("keys", keys, torch.int64)
    sentences = _sentence_numbers(tensor("sentences", sentences, torch.int32, rows=len(keys)))
    return keys, number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"]), sentences


def _sentence_numbers(sentences: Tensor) -> Tensor:
    at_least_zero("sentences", sentences)
    if len(sentences):
        number("sentences", int(sentences.numpy().max()), ADDRESS_LAYOUT["sentence_limit"])
    return sentences


def splice_ranges(sentences: Tensor, choices: Tensor, swapped_low: Tensor, swapped_choices: Tensor) -> None:
    """The numbers of `draw_splices` are in their ranges."""
    _sentence_numbers(sentences)
    at_least_zero("choices", choices)
    at_least_zero("swapped_low", swapped_low)
    at_least_zero("swapped_choices", swapped_choices)


def _span_begins(table: np.ndarray, sentence_offsets: np.ndarray) -> np.ndarray:
    """Where each span of the table int64 [S, 4] begins: at the end of the one before it, or at 0."""
    begins = np.zeros(len(table), np.int64)
    begins[1:] = table[:-1, 1]
    begins[sentence_offsets[:-1][np.diff(sentence_offsets) > 0]] = 0
    return begins


def _spans(offsets: np.ndarray, table: np.ndarray, sentence_offsets: np.ndarray) -> None:
    """The spans of `table` tile their texts."""
    content_end, span_end = table[:, 0], table[:, 1]
    begins = _span_begins(table, sentence_offsets)
    _refuse("table must have begin ≤ content_end ≤ span_end", (begins > content_end) | (content_end > span_end))
    counts, reached = np.diff(sentence_offsets), np.zeros(len(offsets) - 1, np.int64)
    reached[counts > 0] = span_end[sentence_offsets[1:][counts > 0] - 1]
    wrong = reached != np.diff(offsets)
    if wrong.any():
        raise ValueError(f"table must hold spans that tile their text, not so in text {int(wrong.argmax())}")


def splices(
    text: Tensor,
    offsets: Tensor,
    table: Tensor,
    sentence_offsets: Tensor,
    swapped: Tensor,
    kept_bytes: Tensor,
    completions: Tensor,
    completion_offsets: Tensor,
) -> None:
    """Offsets rise, the spans tile their texts, and the splices fit them."""
    ragged("offsets", offsets, len(text))
    ragged("sentence_offsets", sentence_offsets, len(table))
    ragged("completion_offsets", completion_offsets, len(completions))
    tiles = [column.numpy() for column in (offsets, table, sentence_offsets)]
    _spans(*tiles)
    _splices(text.numpy(), *tiles, swapped.numpy(), kept_bytes.numpy())


def _splices(
    text: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    sentence_offsets: np.ndarray,
    swapped: np.ndarray,
    kept_bytes: np.ndarray,
) -> None:
    """Swapped sentences have a word to swap, and no more is kept than a sentence, swapped or not, holds."""
    begins = _span_begins(table, sentence_offsets)
    content_end, word_begin, word_end = table[:, 0], table[:, 2], table[:, 3]
    inside = (begins <= word_begin) & (word_begin <= word_end) & (word_end <= content_end)
    _refuse("table must place a swapped word inside its sentence", swapped & ~inside)
    starts = np.repeat(offsets[:-1], np.diff(sentence_offsets))
    growth = np.zeros(len(table), np.int64)
    for s in np.flatnonzero(swapped).tolist():
        word = text[starts[s] + word_begin[s] : starts[s] + word_end[s]].tobytes()
        if word not in COUNTERPARTS:
            raise ValueError(f"table must point a swapped sentence at yes or no, got {word!r} in sentence {s}")
        growth[s] = len(COUNTERPARTS[word]) - len(word)
    room = content_end - begins + growth
    _refuse("kept_bytes must be in 0 … the sentence's length", (kept_bytes < 0) | (kept_bytes > room))


def _refuse(requirement: str, wrong: np.ndarray) -> None:
    if wrong.any():
        raise ValueError(f"{requirement}, not so in sentence {int(wrong.argmax())}")


def heads(
    name: str, value: Tensor, dims: int, *, like: Tensor, shape: tuple[int | None, ...] | None = None
) -> tuple[int, ...]:
    """The shape of an attention operand: floating, with `dims` dimensions, in the dtype and on the device of `like`."""
    present(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must have dtype float32, bfloat16 or float16, got {value.dtype}")
    if value.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of q, {like.dtype}, got {value.dtype}")
    if value.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got shape {tuple(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of q, {like.device}, got {value.device}")
    size = value.shape[-1]
    if not 32 <= size <= 256 or size % 8:
        raise ValueError(f"{name} must have a head size of 32 … 256 in steps of 8, got {size}")
    if value.stride(-1) != 1:
        raise ValueError(f"{name} must be contiguous in its last dimension, got strides {value.stride()}")
    if shape and any(need not in (None, got) for need, got in zip(shape, value.shape, strict=True)):
        needed = ["any" if size is None else size for size in shape]
        raise ValueError(f"{name} must have shape {needed}, got {list(value.shape)}")
    return tuple(value.shape)


def query_heads(q: Tensor, kv_heads: int, name: str) -> None:
    """Every key head serves the same number of query heads, and q has the head size of the keys."""
    if kv_heads == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"q must have a multiple of the {kv_heads} head(s) of {name}, got {q.shape[1]}")


def scale(value: float | None, head_dim: int) -> float:
    """The factor of the scores, 1/√D by default."""
    if value is None:
        return head_dim**-0.5
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite, got {value}")
    return value


def softcap(value: float) -> float:
    """The bound of the scores, 0 for none."""
    if not 0 <= value < math.inf:
        raise ValueError(f"softcap must be finite and at least 0, got {value}")
    return value


def key_mask(visible: Tensor, batch: int, keys: int, device: torch.device) -> Tensor:
    """`visible`, contiguous, if it is a bool mask of each row's keys."""
    present("visible", visible)
    if visible.dtype != torch.bool:
        raise TypeError(f"visible must have dtype torch.bool, got {visible.dtype}")
    if visible.shape != (batch, keys):
        raise ValueError(f"visible must have shape {[batch, keys]}, got {list(visible.shape)}")
    if visible.device != device:
        raise ValueError(f"visible must be on the device of q, {device}, got {visible.device}")
    return visible.contiguous()


def index(name: str, value: Tensor, q: Tensor, rows: int | None = None) -> Tensor:
    """`value`, contiguous, if it holds int32 on the device of `q`."""
    return tensor(name, value, torch.int32, rows=rows, device=q.device)


def lengths(
    prefix_count: Tensor,
    suffix_length: Tensor,
    visible: Tensor | None,
    example: Tensor | None,
    prefix_offsets: Tensor | None,
    rows: int,
    suffix_rows: int,
) -> None:
    """No length or index leads out of its tensor."""
    if prefix_offsets is not None and len(prefix_offsets) == 0:
        raise ValueError("prefix_offsets must have at least 1 entry, got 0")
    _within("suffix_length", suffix_length, suffix_rows)
    if visible is not None:
        _within("visible", visible, rows - 1)
    keys = rows if visible is None else len(visible)
    if example is None:
        _within("prefix_count", prefix_count, keys)
        return
    _within("prefix_offsets", prefix_offsets, keys)
    sizes = np.diff(prefix_offsets.cpu().numpy())
    if len(sizes) and sizes.min() < 0:
        raise ValueError(f"prefix_offsets must not fall, got a step of {sizes.min()}")
    _within("example", example, len(sizes) - 1)
    _within("prefix_count", prefix_count, sizes[example.cpu().numpy()])


def _within(name: str, values: Tensor, highest: int | np.ndarray) -> None:
    """Every value is in 0 … highest (a number, or one for each value)."""
    numbers = values.cpu().numpy()
    wrong = (numbers < 0) | (numbers > highest)
    if wrong.any():
        row = int(wrong.argmax())
        limit = highest if isinstance(highest, int) else highest[row]
        raise ValueError(f"{name} must be in 0 … {limit}, got {numbers[row]} at row {row}")
