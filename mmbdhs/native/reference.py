"""The reference backend: every op in NumPy, PyTorch and Python, without the binary.

These functions define the ops: the C++ and CUDA code is tested against them, bit for bit where nothing is rounded. They
also run where no binary was built. They take their inputs as valid, because `mmbdhs.native.ops` has checked them. Only
`sample_visible`, `draw_splices` and `join_splices` look at the values of their inputs, and return None if one does not
fit. A ragged array is a flat array and an `offsets` array with one more entry than there are rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import sentence_rule
from mmbdhs.native.operands import Masked, SharedPrefix, SpliceDraws, Splices, score_factor
from mmbdhs.native.plain_attention import softmax_attention
from mmbdhs.native.sentence_rule import COLUMNS
from mmbdhs.native.sentence_tables import COUNTERPARTS

# What a random draw is for. It is a part of the draw's address, so that no two uses ever share a draw.
IMAGE_MASK, SWAP, CUT, TOKEN, NOISE = 1, 2, 3, 4, 5

# The same constants as in csrc/random/philox.h, where the layout is described; a test compares the two.
ADDRESS_LAYOUT = {
    "block_words": 4,
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


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """Compute Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

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
    """Draw `count` random words at each of N addresses: keys int64 [N], sentences [N] → uint32 [N, count]."""
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
    """Return the smallest random word that leaves an image token visible: ⌈threshold · 2^32⌉, exact in float64."""
    return math.ceil(threshold * 2**32)


def sample_visible(
    seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float
) -> tuple[Tensor, Tensor] | None:
    """Reference implementation of `ops.sample_visible`. Returns None if a number of tokens is negative."""
    if (tokens < 0).any():
        return None
    rows = []
    for key, count in zip(keys.cpu().numpy()[:, None], tokens.tolist(), strict=True):
        words = draw_words(seed, key, IMAGE_MASK, iteration, np.zeros(1, np.int32), count)[0]
        rows.append(np.flatnonzero(words.astype(np.uint64) >= visible_from(threshold)).astype(np.int32))
    flat = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return torch.from_numpy(flat).to(keys.device), _offsets([len(row) for row in rows]).to(keys.device)


def random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    """Reference implementation of `ops.random_uniform`."""
    words = draw_words(seed, keys.numpy(), purpose, iteration, sentences.numpy(), count)
    return torch.from_numpy(words * 2.0**-32)


def split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Reference implementation of `ops.split_sentences`."""
    tables = [sentence_rule.split(raw) for raw in _rows(text, offsets)]
    rows = [row for table in tables for row in table]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(COLUMNS)), _offsets([len(table) for table in tables])


def sentence_ends(text: Tensor, offsets: Tensor, final: Tensor) -> Tensor:
    """Reference implementation of `ops.sentence_ends`."""
    rows = zip(_rows(text, offsets), final.tolist(), strict=True)
    return torch.tensor([sentence_rule.end_of_sentence(*row) for row in rows], dtype=torch.int64)


def draw_splices(draws: SpliceDraws) -> tuple[Tensor, Tensor] | None:
    """Reference implementation of `ops.draw_splices`. Returns None if a number is out of range."""
    a = draws
    numbers = torch.stack([a.sentences, a.choices, a.swapped_choices])
    if (numbers < 0).any() or (a.sentences >= ADDRESS_LAYOUT["sentence_limit"]).any():
        return None
    keys, sentences = a.keys.numpy(), a.sentences.numpy()
    coin, cut = (draw_words(a.seed, keys, purpose, a.iteration, sentences, 1)[:, 0] for purpose in (SWAP, CUT))
    swapped = a.swappable.numpy() & (coin >= 1 << 31)
    count = np.where(swapped, a.swapped_choices.numpy(), a.choices.numpy()).astype(np.uint64)
    choice = (cut.astype(np.uint64) * count) >> np.uint64(32)
    return torch.from_numpy(swapped), torch.from_numpy(choice.astype(np.int32))


def join_splices(splices: Splices) -> tuple[Tensor, Tensor] | None:
    """Reference implementation of `ops.join_splices`. Returns None if the splices do not fit their texts."""
    a = splices
    ragged = ((a.offsets, a.text), (a.sentence_offsets, a.table), (a.completion_offsets, a.completions))
    if not all(_rises(bounds.tolist(), len(rows)) for bounds, rows in ragged):
        return None
    spans, bounds = a.table.tolist(), a.sentence_offsets.tolist()
    swaps, kept = a.swapped.tolist(), a.kept_bytes.tolist()
    completions = list(_rows(a.completions, a.completion_offsets))
    joined = []
    for row, raw in enumerate(_rows(a.text, a.offsets)):
        begin, pieces = 0, []
        for s in range(bounds[row], bounds[row + 1]):
            if not _fits(raw, begin, spans[s], swaps[s], kept[s]):
                return None
            content_end, span_end = spans[s][:2]
            sentence = _swap(raw, begin, spans[s]) if swaps[s] else raw[begin:content_end]
            pieces += [sentence[: kept[s]], completions[s], raw[content_end:span_end]]
            begin = span_end
        if begin != len(raw):
            return None
        joined.append(b"".join(pieces))
    flat = torch.from_numpy(np.frombuffer(bytearray(b"".join(joined)), dtype=np.uint8))
    return flat, _offsets([len(row) for row in joined])


def lengths_fit(operands: SharedPrefix) -> bool:
    """Leave the answer to `checks.lengths`: this backend has no faster way to look."""
    return False


def shared_prefix_attention(operands: SharedPrefix) -> tuple[Tensor, Tensor]:
    """Reference implementation of `attention.shared_prefix_attention`: one branch after another."""
    a = operands
    lengths = zip(a.prefix_count.tolist(), a.suffix_length.tolist(), strict=True)
    begins, factor = [0] * len(a.q), score_factor(a.q, a.scale)
    if a.examples is not None:
        example, prefix_offsets = a.examples
        begins = prefix_offsets[example.long()].tolist()
    out, lse = torch.empty_like(a.q), a.q.new_empty(a.q.shape[:2], dtype=torch.float32)
    for branch, ((count, length), begin) in enumerate(zip(lengths, begins, strict=True)):
        rows = slice(begin, begin + count) if a.visible is None else a.visible[begin : begin + count].long()
        k = torch.cat([a.k_prefix[:, rows], a.k_suffix[branch, :, :length]], dim=1)
        v = torch.cat([a.v_prefix[:, rows], a.v_suffix[branch, :, :length]], dim=1)
        seen = torch.ones(1, k.shape[1], dtype=torch.bool, device=a.q.device)
        row_out, row_lse = softmax_attention(a.q[branch, :, None], k, v, seen, factor, a.softcap)
        out[branch], lse[branch] = row_out[:, 0], row_lse[:, 0]
    return out, lse


def masked_attention(operands: Masked) -> tuple[Tensor, Tensor]:
    """Reference implementation of `attention.masked_attention`: one batch row after another."""
    a = operands
    queries, keys = a.q.shape[2], a.k.shape[2]
    order = torch.ones(queries, keys, dtype=torch.bool, device=a.q.device)
    seen = a.visible[:, None] & (order.tril(keys - queries) if a.causal else order)
    options = (score_factor(a.q, a.scale), a.softcap)
    rows = [_attend(*row, *options) for row in zip(a.q, a.k, a.v, seen, strict=True)]
    if not rows:
        return torch.empty_like(a.q), a.q.new_empty(a.q.shape[:3], dtype=torch.float32)
    out, lse = zip(*rows, strict=True)
    return torch.stack(out), torch.stack(lse)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, factor: float, softcap: float) -> tuple[Tensor, Tensor]:
    """Call `softmax_attention`: once, or with values that are not finite once for each query and its own keys.

    In a product of matrices the weight 0 of a hidden key gives NaN with a value that is not finite.
    """
    if len(seen) == 0 or v.isfinite().all():
        return softmax_attention(q, k, v, seen, factor, softcap)
    queries = zip(q.unbind(1), seen, strict=True)
    rows = [
        softmax_attention(query[:, None], k[:, own], v[:, own], own[None, own], factor, softcap)
        for query, own in queries
    ]
    out, lse = zip(*rows, strict=True)
    return torch.cat(out, dim=1), torch.cat(lse, dim=1)


def _rises(bounds: list[int], total: int) -> bool:
    """Whether the bounds rise from 0 to `total`."""
    return bounds[0] == 0 and bounds == sorted(bounds) and bounds[-1] == total


def _fits(raw: bytes, begin: int, span: list[int], swapped: bool, kept: int) -> bool:
    """Whether the span is inside its text, has a word to swap if it is swapped, and holds the kept bytes."""
    content_end, span_end, word_begin, word_end, _ = span
    if not begin <= content_end <= span_end <= len(raw):
        return False
    if not swapped:
        return 0 <= kept <= content_end - begin
    if not begin <= word_begin <= word_end <= content_end or raw[word_begin:word_end] not in COUNTERPARTS:
        return False
    return 0 <= kept <= len(_swap(raw, begin, span))


def _swap(raw: bytes, begin: int, span: list[int]) -> bytes:
    content_end, _, word_begin, word_end, _ = span
    return raw[begin:word_begin] + COUNTERPARTS[raw[word_begin:word_end]] + raw[word_end:content_end]


def _rows(flat: Tensor, offsets: Tensor) -> Iterator[bytes]:
    raw, bounds = flat.numpy().tobytes(), offsets.tolist()
    return (raw[begin:end] for begin, end in pairwise(bounds))


def _offsets(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
