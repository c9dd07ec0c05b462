"""Checks of op arguments: each returns what it checked, or raises an error that names the argument.

TypeError for a wrong dtype, ValueError for everything else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native.reference import ADDRESS_LAYOUT, COUNTERPARTS

CPU = torch.device("cpu")


def tensor(
    name: str, value: Tensor, dtype: torch.dtype, *, rows: int | None = None, device: torch.device = CPU
) -> Tensor:
    """`value`, contiguous, if it has this dtype, one dimension, this device and (if given) number of rows."""
    if value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(value.shape)}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name} must have {rows} row(s), got {len(value)}")
    if value.device != device:
        raise ValueError(f"{name} must be on device {device}, got {value.device}")
    return value.contiguous()


def ragged(name: str, offsets: Tensor, total: int, *, rows: int | None = None) -> Tensor:
    """`offsets` if they rise from 0 to `total`, over `rows` rows (any number if None)."""
    offsets = tensor(name, offsets, torch.int64)
    bounds = offsets.numpy()
    if len(bounds) == 0 or (rows is not None and len(bounds) != rows + 1):
        needed = "at least 1 entry" if rows is None else f"{rows + 1} entries"
        raise ValueError(f"{name} must have {needed}, got {len(bounds)}")
    if bounds[0] != 0 or bounds[-1] != total or (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"{name} must rise from 0 to {total}, got {np.array2string(bounds, threshold=8)}")
    return offsets


def at_least_zero(name: str, values: Tensor) -> Tensor:
    """`values` if none is negative."""
    if len(values) and (lowest := int(values.min())) < 0:
        raise ValueError(f"{name} must not be negative, got {lowest} at row {int(values.argmin())}")
    return values


def number(name: str, value: int, limit: int) -> int:
    """`value` if 0 ≤ value < limit."""
    if not 0 <= value < limit:
        raise ValueError(f"{name} must be in 0 … {limit - 1}, got {value}")
    return value


def address(keys: Tensor, iteration: int, sentences: Tensor) -> tuple[Tensor, int, Tensor]:
    """The parts of N random addresses: keys int64 [N], iteration, sentences int32 [N]."""
    keys = tensor("keys", keys, torch.int64)
    sentences = at_least_zero("sentences", tensor("sentences", sentences, torch.int32, rows=len(keys)))
    if len(sentences):
        number("sentences", int(sentences.max()), ADDRESS_LAYOUT["sentence_limit"])
    return keys, number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"]), sentences


def span_begins(table: np.ndarray, sentence_offsets: np.ndarray) -> np.ndarray:
    """Where each span of the table int64 [S, 4] begins: at the end of the one before it, or at 0."""
    begins = np.zeros(len(table), np.int64)
    begins[1:] = table[:-1, 1]
    begins[sentence_offsets[:-1][np.diff(sentence_offsets) > 0]] = 0
    return begins


def spans(offsets: np.ndarray, table: np.ndarray, sentence_offsets: np.ndarray) -> None:
    """The spans of `table` tile their texts."""
    content_end, span_end = table[:, 0], table[:, 1]
    begins = span_begins(table, sentence_offsets)
    _refuse("table must have begin ≤ content_end ≤ span_end", (begins > content_end) | (content_end > span_end))
    counts, reached = np.diff(sentence_offsets), np.zeros(len(offsets) - 1, np.int64)
    reached[counts > 0] = span_end[sentence_offsets[1:][counts > 0] - 1]
    wrong = reached != np.diff(offsets)
    if wrong.any():
        raise ValueError(f"table must hold spans that tile their text, not so in text {int(wrong.argmax())}")


def splices(
    text: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    sentence_offsets: np.ndarray,
    swapped: np.ndarray,
    kept_bytes: np.ndarray,
) -> None:
    """Swapped sentences have a word to swap, and no more is kept than a sentence, swapped or not, holds."""
    begins = span_begins(table, sentence_offsets)
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
