"""Plain twins of every native op: same names, arguments and bits, in NumPy and Python, without the binary.

They are the definition that the C++ and CUDA code is tested against, and the path that runs where no binary
was built. Inputs are taken as valid; `mmbdhs.native.ops` is the checked door. Only `sample_visible`, `draw_splices` and
`join_splices` look at the values of their inputs, as they read them, and return None where one does not fit. Ragged
arrays are a flat array and an `offsets` array with one more entry than there are rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import sentence_rule
from mmbdhs.native.plain_attention import softmax_attention
from mmbdhs.native.sentence_rule import NO_STOP, UNDECIDED  # noqa: F401

# What a random draw is for; a part of its address, so that no two uses ever share a draw.
IMAGE_MASK, SWAP, CUT, TOKEN, NOISE = 1, 2, 3, 4, 5

# Mirror of the constants in csrc/random/philox.h, where the layout is described; a test compares the two.
ADDRESS_LAYOUT = {
    "lanes": 4,
    "sentence_limit": 1 << 16,
    "iteration_shift": 16,
    "iteration_limit": 1 << 12,
    "purpose_shift": 28,
    "purpose_limit": 1 << 4,
    "image_mask": IMAGE_MASK,
    "swap": SWAP,
    "cut": CUT,
    "token": TOKEN,
    "noise": NOISE,
}

_WORD = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
COUNTERPARTS = {b"Yes": b"No", b"No": b"Yes", b"yes": b"no", b"no": b"yes"}


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    `counter` is uint32 [..., 4]; the key is the 64-bit `seed`, low word first. Returns uint32 [..., 4].
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> 32) ^ c1 ^ np.uint64(key[0]), (product0 >> 32) ^ c3 ^ np.uint64(key[1])
        c1, c3 = product1 & _WORD, product0 & _WORD
        key = [(k + step) & 0xFFFFFFFF for k, step in zip(key, _KEY_STEPS, strict=True)]
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw_words(
    seed: int, keys: np.ndarray, purpose: int, iteration: int, sentences: np.ndarray, count: int
) -> np.ndarray:
    """Random words of `count` items at each of N addresses: keys int64 [N], sentences [N] → uint32 [N,
    count]."""
    blocks = -(-count // 4)
    counter = np.empty((len(keys), blocks, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    head = (purpose << ADDRESS_LAYOUT["purpose_shift"]) | (iteration << ADDRESS_LAYOUT["iteration_shift"])
    counter[..., 1] = (sentences.astype(np.uint32) | np.uint32(head))[:, None]
    bits = keys.view(np.uint64)
    counter[..., 2] = (bits & _WORD).astype(np.uint32)[:, None]
    counter[..., 3] = (bits >> np.uint64(32)).astype(np.uint32)[:, None]
    return philox(counter, seed).reshape(len(keys), blocks * 4)[:, :count]


def visible_from(threshold: float) -> int:
    """The smallest random word that leaves an image token visible: ⌈threshold · 2^32⌉, exact in float64."""
    return math.ceil(threshold * 2**32)


def sample_visible(
    seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float
) -> tuple[Tensor, Tensor] | None:
    """Twin of `ops.sample_visible`; None where a number of tokens is negative."""
    if (tokens < 0).any():
        return None
    rows = []
    for key, count in zip(keys.cpu().numpy()[:, None], tokens.tolist(), strict=True):
        words = draw_words(seed, key, IMAGE_MASK, iteration, np.zeros(1, np.int32), count)[0]
        rows.append(np.flatnonzero(words.astype(np.uint64) >= visible_from(threshold)).astype(np.int32))
    flat = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return torch.from_numpy(flat).to(keys.device), _offsets([len(row) for row in rows]).to(keys.device)


def random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    """Twin of `ops.random_uniform`."""
    words = draw_words(seed, keys.numpy(), purpose, iteration, sentences.numpy(), count)
    return torch.from_numpy(words * 2.0**-32)


def split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Twin of `ops.split_sentences`."""
    tables = [sentence_rule.split(raw) for raw in _rows(text, offsets)]
    rows = [row for table in tables for row in table]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4), _offsets([len(table) for table in tables])


def sentence_ends(text: Tensor, offsets: Tensor, begins: Tensor, final: Tensor) -> Tensor:
    """Twin of `ops.sentence_ends`."""
    rows = zip(_rows(text, offsets), begins.tolist(), final.tolist(), strict=True)
    return torch.tensor([sentence_rule.end_of_sentence(*row) for row in rows], dtype=torch.int64)


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
    """Twin of `ops.draw_splices`; None where a number is out of range."""
    numbers = torch.stack([sentences, choices, swapped_low, swapped_choices])
    if (numbers < 0).any() or (sentences >= ADDRESS_LAYOUT["sentence_limit"]).any():
        return None
    address = (keys.numpy(), iteration, sentences.numpy())
    coin, cut = (
        draw_words(seed, address[0], purpose, *address[1:], 1)[:, 0].astype(np.uint64) for purpose in (SWAP, CUT)
    )
    swapped = swappable.numpy() & (coin >= 1 << 31)
    low = np.where(swapped, swapped_low.numpy(), 0).astype(np.int64)
    high = np.where(swapped, swapped_choices.numpy(), choices.numpy()).astype(np.int64)
    width = np.maximum(high - low, 0).astype(np.uint64)
    choice = low + ((cut * width) >> np.uint64(32)).astype(np.int64)
    return torch.from_numpy(swapped), torch.from_numpy(choice.astype(np.int32))


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
    """Twin of `ops.join_splices`; None where the splices do not fit their texts."""
    ragged = ((offsets, len(text)), (sentence_offsets, len(table)), (completion_offsets, len(completions)))
    if not all(_rises(bounds.tolist(), total) for bounds, total in ragged):
        return None
    spans, bounds = table.tolist(), sentence_offsets.tolist()
    swaps, kept = swapped.tolist(), kept_bytes.tolist()
    endings = list(_rows(completions, completion_offsets))
    joined = []
    for row, raw in enumerate(_rows(text, offsets)):
        begin, pieces = 0, []
        for s in range(bounds[row], bounds[row + 1]):
            if not _fits(raw, begin, spans[s], swaps[s], kept[s]):
                return None
            content_end, span_end = spans[s][:2]
            sentence = _swap(raw, begin, spans[s]) if swaps[s] else raw[begin:content_end]
            pieces += [sentence[: kept[s]], endings[s], raw[content_end:span_end]]
            begin = span_end
        if begin != len(raw):
            return None
        joined.append(b"".join(pieces))
    flat = torch.from_numpy(np.frombuffer(bytearray(b"".join(joined)), dtype=np.uint8))
    return flat, _offsets([len(row) for row in joined])


def lengths_fit(
    prefix_count: Tensor,
    suffix_length: Tensor,
    visible: Tensor | None,
    example: Tensor | None,
    prefix_offsets: Tensor | None,
    prefix_rows: int,
    suffix_rows: int,
) -> bool:
    """Never sure: it leaves the answer to `checks.lengths`."""
    return False


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
    """Twin of `attention.shared_prefix_attention`: branch after branch, over its keys gathered."""
    lengths = zip(prefix_count.tolist(), suffix_length.tolist(), strict=True)
    begins = [0] * len(q) if example is None else prefix_offsets[example.long()].tolist()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    for branch, ((count, length), begin) in enumerate(zip(lengths, begins, strict=True)):
        rows = slice(begin, begin + count) if visible is None else visible[begin : begin + count].long()
        k = torch.cat([k_prefix[:, rows], k_suffix[branch, :, :length]], dim=1)
        v = torch.cat([v_prefix[:, rows], v_suffix[branch, :, :length]], dim=1)
        seen = torch.ones(1, k.shape[1], dtype=torch.bool, device=q.device)
        row_out, row_lse = softmax_attention(q[branch, :, None], k, v, seen, scale, softcap)
        out[branch], lse[branch] = row_out[:, 0], row_lse[:, 0]
    return out, lse


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, causal: bool, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Twin of `attention.masked_attention`."""
    queries, keys = q.shape[2], k.shape[2]
    order = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    seen = visible[:, None] & (order.tril(keys - queries) if causal else order)
    rows = [softmax_attention(*row, scale, softcap) for row in zip(q, k, v, seen, strict=True)]
    if not rows:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    out, lse = zip(*rows, strict=True)
    return torch.stack(out), torch.stack(lse)


def _rises(bounds: list[int], total: int) -> bool:
    """From 0 to `total`."""
    return bounds[0] == 0 and bounds == sorted(bounds) and bounds[-1] == total


def _fits(raw: bytes, begin: int, span: list[int], swapped: bool, kept: int) -> bool:
    """The span lies in its text, has a word to swap if it is swapped, and holds what is kept of it."""
    content_end, span_end, word_begin, word_end = span
    if not begin <= content_end <= span_end <= len(raw):
        return False
    if not swapped:
        return 0 <= kept <= content_end - begin
    if not begin <= word_begin <= word_end <= content_end or raw[word_begin:word_end] not in COUNTERPARTS:
        return False
    return 0 <= kept <= len(_swap(raw, begin, span))


def _swap(raw: bytes, begin: int, span: list[int]) -> bytes:
    content_end, _, word_begin, word_end = span
    return raw[begin:word_begin] + COUNTERPARTS[raw[word_begin:word_end]] + raw[word_end:content_end]


def _rows(flat: Tensor, offsets: Tensor) -> Iterator[bytes]:
    raw, bounds = flat.numpy().tobytes(), offsets.tolist()
    return (raw[begin:end] for begin, end in pairwise(bounds))


def _offsets(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
