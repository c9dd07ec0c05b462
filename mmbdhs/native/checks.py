"""Checks of op arguments: each returns what it checked, or raises an error that names the argument.

A wrong dtype raises TypeError, everything else ValueError.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native.operands import SharedPrefix, SpliceDraws, Splices
from mmbdhs.native.reference import ADDRESS_LAYOUT
from mmbdhs.native.sentence_tables import COUNTERPARTS

CPU = torch.device("cpu")
_LARGEST_SCALE = 1e6
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def tensor(
    name: str, value: Tensor, dtype: torch.dtype, *, rows: int | None = None, device: torch.device = CPU
) -> Tensor:
    """Return `value`, contiguous, if it has this dtype, one dimension, this device and, if given, this many rows."""
    present(name, value)
    if value.dtype != dtype:
        raise TypeError(f"{name}: needs dtype {dtype}, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name}: needs 1 dimension, got shape {tuple(value.shape)}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name}: needs {rows} row(s), got {len(value)}")
    if value.device != device:
        raise ValueError(f"{name}: needs device {device}, got {value.device}")
    return value.contiguous()


def present(name: str, value: Tensor | None) -> None:
    """Check that `value` is not None, which the dispatcher lets through as an undefined tensor."""
    if value is None:
        raise TypeError(f"{name}: needs a tensor, got None")


def bounds(name: str, offsets: Tensor, *, rows: int | None = None) -> Tensor:
    """Return `offsets`, contiguous, if they are one more than `rows` (any number but 0 if `rows` is None)."""
    offsets = tensor(name, offsets, torch.int64)
    if len(offsets) == 0 or (rows is not None and len(offsets) != rows + 1):
        needed = "at least 1 entry" if rows is None else f"{rows + 1} entries"
        raise ValueError(f"{name}: needs {needed}, got {len(offsets)}")
    return offsets


def ragged(name: str, offsets: Tensor, total: int) -> Tensor:
    """Return `offsets`, contiguous, if they rise from 0 to `total`."""
    offsets = bounds(name, offsets)
    numbers = offsets.numpy()
    if numbers[0] != 0 or numbers[-1] != total or (numbers[1:] < numbers[:-1]).any():
        raise ValueError(
            f"{name}: needs entries that rise from 0 to {total}, got {np.array2string(numbers, threshold=8)}"
        )
    return offsets


def at_least_zero(name: str, values: Tensor) -> Tensor:
    """Return `values` if none is negative."""
    numbers = values.cpu().numpy()
    if len(numbers) and (lowest := numbers.min()) < 0:
        raise ValueError(f"{name}: needs numbers of at least 0, got {lowest} at row {numbers.argmin()}")
    return values


def number(name: str, value: int, limit: int) -> int:
    """Return `value` if 0 ≤ value < limit."""
    if not 0 <= value < limit:
        raise ValueError(f"{name}: needs a number in 0 … {limit - 1}, got {value}")
    return value


def address(keys: Tensor, iteration: int, sentences: Tensor) -> tuple[Tensor, int, Tensor]:
    """Return the parts of N random addresses: keys int64 [N], iteration, sentences int32 [N]."""
    keys = tensor("keys", keys, torch.int64)
    sentences = _sentence_numbers(tensor("sentences", sentences, torch.int32, rows=len(keys)))
    return keys, number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"]), sentences


def _sentence_numbers(sentences: Tensor) -> Tensor:
    at_least_zero("sentences", sentences)
    if len(sentences):
        number("sentences", int(sentences.numpy().max()), ADDRESS_LAYOUT["sentence_limit"])
    return sentences


def splice_ranges(draws: SpliceDraws) -> None:
    """Check that the numbers of `draw_splices` are in their ranges."""
    _sentence_numbers(draws.sentences)
    at_least_zero("choices", draws.choices)
    at_least_zero("swapped_choices", draws.swapped_choices)


def _span_begins(table: np.ndarray, sentence_offsets: np.ndarray) -> np.ndarray:
    """Return where each span of the table int64 [S, 5] begins: at the end of the span before it, or at 0."""
    begins = np.zeros(len(table), np.int64)
    begins[1:] = table[:-1, 1]
    begins[sentence_offsets[:-1][np.diff(sentence_offsets) > 0]] = 0
    return begins


def _check_spans(offsets: np.ndarray, table: np.ndarray, sentence_offsets: np.ndarray, begins: np.ndarray) -> None:
    """Check that the spans of `table` tile their texts."""
    content_end, span_end = table[:, 0], table[:, 1]
    _refuse("table: needs begin ≤ content_end ≤ span_end", (begins > content_end) | (content_end > span_end))
    counts, reached = np.diff(sentence_offsets), np.zeros(len(offsets) - 1, np.int64)
    reached[counts > 0] = span_end[sentence_offsets[1:][counts > 0] - 1]
    wrong = reached != np.diff(offsets)
    if wrong.any():
        raise ValueError(f"table: needs spans that tile their text, got others in text {int(wrong.argmax())}")


def splices(a: Splices) -> None:
    """Check that offsets rise, that the spans tile their texts, and that the splices fit them."""
    ragged("offsets", a.offsets, len(a.text))
    ragged("sentence_offsets", a.sentence_offsets, len(a.table))
    ragged("completion_offsets", a.completion_offsets, len(a.completions))
    offsets, table, sentence_offsets = (x.numpy() for x in (a.offsets, a.table, a.sentence_offsets))
    begins = _span_begins(table, sentence_offsets)
    _check_spans(offsets, table, sentence_offsets, begins)
    starts = np.repeat(offsets[:-1], np.diff(sentence_offsets))
    room = table[:, 0] - begins + _growths(a.text.numpy(), table, begins, starts, a.swapped.numpy())
    kept = a.kept_bytes.numpy()
    _refuse("kept_bytes: needs numbers in 0 … the sentence's length", (kept < 0) | (kept > room))


def _growths(
    text: np.ndarray, table: np.ndarray, begins: np.ndarray, starts: np.ndarray, swapped: np.ndarray
) -> np.ndarray:
    """Return how many bytes each sentence gains by its swap. Checks that swapped sentences have a word to swap."""
    content_end, word_begin, word_end = table[:, 0], table[:, 2], table[:, 3]
    inside = (begins <= word_begin) & (word_begin <= word_end) & (word_end <= content_end)
    _refuse("table: needs every swapped word inside its sentence", swapped & ~inside)
    growth = np.zeros(len(table), np.int64)
    for s in np.flatnonzero(swapped).tolist():
        word = text[starts[s] + word_begin[s] : starts[s] + word_end[s]].tobytes()
        if word not in COUNTERPARTS:
            raise ValueError(f"table: needs yes or no as the word of a swapped sentence, got {word!r} in sentence {s}")
        growth[s] = len(COUNTERPARTS[word]) - len(word)
    return growth


def _refuse(requirement: str, wrong: np.ndarray) -> None:
    if wrong.any():
        raise ValueError(f"{requirement}, got others in sentence {int(wrong.argmax())}")


def heads(
    name: str, value: Tensor, dims: int, *, like: Tensor, shape: tuple[int | None, ...] | None = None
) -> tuple[int, ...]:
    """Return the shape of an attention operand, which needs `dims` dimensions and the dtype and device of `like`."""
    present(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: needs dtype float32, bfloat16 or float16, got {value.dtype}")
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: needs the dtype of q, {like.dtype}, got {value.dtype}")
    if value.dim() != dims:
        raise ValueError(f"{name}: needs {dims} dimensions, got shape {tuple(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name}: needs the device of q, {like.device}, got {value.device}")
    size = value.shape[-1]
    if not 32 <= size <= 256 or size % 8:
        raise ValueError(f"{name}: needs a head size of 32 … 256 in steps of 8, got {size}")
    if value.stride(-1) != 1:
        raise ValueError(f"{name}: needs a contiguous last dimension, got strides {value.stride()}")
    if shape and any(need not in (None, got) for need, got in zip(shape, value.shape, strict=True)):
        needed = ["any" if size is None else size for size in shape]
        raise ValueError(f"{name}: needs shape {needed}, got {list(value.shape)}")
    return tuple(value.shape)


def query_heads(q: Tensor, kv_heads: int, name: str) -> None:
    """Check that every key head serves the same number of query heads."""
    if kv_heads == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"q: needs a multiple of the {kv_heads} head(s) of {name}, got {q.shape[1]}")


def scale(value: float | None) -> None:
    """Check that the factor of the scores, if given, leaves room for them in float32."""
    if value is not None and not abs(value) <= _LARGEST_SCALE:
        raise ValueError(f"scale: needs a number of at most {_LARGEST_SCALE:g} in size, got {value}")


def softcap(value: float) -> None:
    """Check the bound of the scores, where 0 stands for none."""
    if not 0 <= value < math.inf:
        raise ValueError(f"softcap: needs a finite number of at least 0, got {value}")


def key_mask(visible: Tensor, batch: int, keys: int, device: torch.device) -> Tensor:
    """Return `visible`, contiguous, if it is a bool mask of each row's keys."""
    present("visible", visible)
    if visible.dtype != torch.bool:
        raise TypeError(f"visible: needs dtype torch.bool, got {visible.dtype}")
    if visible.shape != (batch, keys):
        raise ValueError(f"visible: needs shape {[batch, keys]}, got {list(visible.shape)}")
    if visible.device != device:
        raise ValueError(f"visible: needs the device of q, {device}, got {visible.device}")
    return visible.contiguous()


def index(name: str, value: Tensor, q: Tensor, rows: int | None = None) -> Tensor:
    """Return `value`, contiguous, if it holds int32 on the device of `q`."""
    return tensor(name, value, torch.int32, rows=rows, device=q.device)


def lengths(a: SharedPrefix) -> None:
    """Check that no length or index leads out of its tensor."""
    if a.prefix_offsets is not None and len(a.prefix_offsets) == 0:
        raise ValueError("prefix_offsets: needs at least 1 entry, got 0")
    _within("suffix_length", a.suffix_length, a.k_suffix.shape[2])
    if a.visible is not None:
        _within("visible", a.visible, a.k_prefix.shape[1] - 1)
    if a.examples is None:
        _within("prefix_count", a.prefix_count, a.prefix_keys)
        return
    example, prefix_offsets = a.examples
    _within("prefix_offsets", prefix_offsets, a.prefix_keys)
    sizes = np.diff(prefix_offsets.cpu().numpy())
    if len(sizes) and sizes.min() < 0:
        raise ValueError(f"prefix_offsets: needs entries that do not fall, got a step of {sizes.min()}")
    _within("example", example, len(sizes) - 1)
    _within("prefix_count", a.prefix_count, sizes[example.cpu().numpy()])


def _within(name: str, values: Tensor, highest: int | np.ndarray) -> None:
    """Check that every value is in 0 … highest, where `highest` is one number, or one for each value."""
    numbers = values.cpu().numpy()
    wrong = (numbers < 0) | (numbers > highest)
    if wrong.any():
        row = int(wrong.argmax())
        limit = highest if isinstance(highest, int) else highest[row]
        raise ValueError(f"{name}: needs numbers in 0 … {limit}, got {numbers[row]} at row {row}")
