"""The random and text ops: each checks its arguments and hands them to the live backend.

Tensors are on the CPU unless an op says otherwise. Keys are 64-bit numbers, stored with the same bits as int64; `seed`
is an integer in 0 … 2^64 − 1. Ragged arrays are flat, with int64 offsets that have one entry more than there are rows.
Texts are UTF-8 bytes, and positions count bytes from the first byte of their own row. A wrong dtype raises TypeError,
any other wrong argument ValueError; both name the argument. The ops are registered with `torch.library` as
`mmbdhs::…`, where a seed is the signed integer with the same bits.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mmbdhs.native import backend, checks
from mmbdhs.native.operands import SpliceDraws, Splices
from mmbdhs.native.reference import ADDRESS_LAYOUT, CUT, IMAGE_MASK, NOISE, SWAP, TOKEN
from mmbdhs.native.registry import register
from mmbdhs.native.sentence_rule import COLUMNS, NO_STOP, UNDECIDED

__all__ = [
    "ADDRESS_LAYOUT",
    "CUT",
    "IMAGE_MASK",
    "NOISE",
    "NO_STOP",
    "SWAP",
    "TOKEN",
    "UNDECIDED",
    "draw_splices",
    "join_splices",
    "random_uniform",
    "sample_visible",
    "sentence_ends",
    "split_sentences",
]

_COUNT_LIMIT = 1 << 34  # 2^32 blocks of 4 words each

Op = TypeVar("Op", bound=Callable[..., Any])


def _seeded(op: Op) -> Op:
    """Let an op whose first argument is `seed` take an unsigned seed; schemas know signed integers only."""

    @functools.wraps(op)
    def call(seed: int, *args: Any, **named: Any) -> Any:
        try:
            value = operator.index(seed)
        except TypeError:
            raise TypeError(f"seed: needs an integer, got {seed!r}") from None
        checks.number("seed", value, 1 << 64)
        return op(value - (1 << 64) if value >> 63 else value, *args, **named)

    return cast(Op, call)


def _unknown_size() -> torch.SymInt:
    """A size that depends on the values of the arguments, for tracing."""
    return torch.library.get_ctx().new_dynamic_size()


@_seeded
@register(
    fake=lambda seed, keys, *_: (keys.new_empty(_unknown_size(), dtype=torch.int32), keys.new_empty(len(keys) + 1))
)
def sample_visible(seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Draw the visible image tokens of E examples (Eq. 6): token i stays visible iff u_i ≥ threshold.

    keys: int64 [E], on the CPU or on a CUDA device.
    iteration: integer in 0 … 4095.
    tokens: int32 [E], the number of image tokens of each example, on the device of `keys`.
    threshold: number in [0, 1].
    Returns (indices int32 [number visible], rising within each example; offsets int64 [E + 1]) on that device.
    """
    checks.present("keys", keys)
    keys = checks.tensor("keys", keys, torch.int64, device=keys.device)
    tokens = checks.tensor("tokens", tokens, torch.int32, rows=len(keys), device=keys.device)
    checks.number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"])
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: needs a number in [0, 1], got {threshold}")
    drawn = backend.live().ops.sample_visible(seed, keys, iteration, tokens, threshold)
    if drawn is None:
        checks.at_least_zero("tokens", tokens)
    return drawn


@_seeded
@register(
    fake=lambda seed, keys, purpose, iteration, sentences, count: keys.new_empty(len(keys), count, dtype=torch.float64)
)
def random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    """Draw `count` uniform numbers in [0, 1) at each of N addresses.

    keys: int64 [N].
    purpose: what the draw is for, such as TOKEN or NOISE.
    iteration: integer in 0 … 4095.
    sentences: int32 [N], in 0 … 65535.
    Returns float64 [N, count], each number a multiple of 2^-32.
    """
    keys, iteration, sentences = checks.address(keys, iteration, sentences)
    checks.number("purpose", purpose, ADDRESS_LAYOUT["purpose_limit"])
    checks.number("count", count, _COUNT_LIMIT)
    return backend.live().ops.random_uniform(seed, keys, purpose, iteration, sentences, count)


@register(fake=lambda text, offsets: (offsets.new_empty(_unknown_size(), len(COLUMNS)), torch.empty_like(offsets)))
def split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Split R texts into sentences by the rule of `mmbdhs.native.sentence_rule`.

    text: uint8 [T].
    offsets: int64 [R + 1].
    Returns (table int64 [S, 5], sentence_offsets int64 [R + 1]). The columns of the table are content_end, the end
    of the sentence without the gap after it; span_end, where the next span begins (the spans tile the text);
    word_begin and word_end of a leading yes or no, which are -1 if there is none; and content_begin, where the
    sentence begins without the gap before it, which only the first sentence of a text can have. A text that is nothing
    but a gap has no content: content_begin and content_end are 0.
    """
    text = checks.tensor("text", text, torch.uint8)
    return backend.live().ops.split_sentences(text, checks.ragged("offsets", offsets, len(text)))


@register(fake=lambda text, offsets, final: offsets.new_empty(len(final)))
def sentence_ends(text: Tensor, offsets: Tensor, final: Tensor) -> Tensor:
    """Find where the first sentence of each of N texts ends, by the rule that splits texts.

    text: uint8 [T].
    offsets: int64 [N + 1].
    final: bool [N], whether no more text will follow; the end of the text then ends the sentence.
    Returns int64 [N]: the byte before which the sentence ends; NO_STOP if it still goes on; UNDECIDED if only more text
    can tell whether it has ended.
    """
    text = checks.tensor("text", text, torch.uint8)
    offsets = checks.ragged("offsets", offsets, len(text))
    final = checks.tensor("final", final, torch.bool, rows=len(offsets) - 1)
    return backend.live().ops.sentence_ends(text, offsets, final)


@_seeded
@register(
    fake=lambda seed, keys, iteration, sentences, swappable, choices, swapped_choices: (
        torch.empty_like(swappable),
        torch.empty_like(choices),
    )
)
def draw_splices(
    seed: int,
    keys: Tensor,
    iteration: int,
    sentences: Tensor,
    swappable: Tensor,
    choices: Tensor,
    swapped_choices: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw the yes/no swap and the cut of N sentences (Algorithm 1).

    keys: int64 [N].
    iteration: integer in 0 … 4095.
    sentences: int32 [N], in 0 … 65535.
    swappable: bool [N], whether the sentence has a yes or no.
    choices, swapped_choices: int32 [N], how many cuts there are to choose from, and how many after a swap.
    Returns (swapped bool [N]: swappable and ξ ≥ 1/2; choice int32 [N]: uniform on 0 … choices − 1, for a swapped
    sentence on 0 … swapped_choices − 1). An empty range gives 0.
    """
    keys = checks.tensor("keys", keys, torch.int64)
    rows = len(keys)
    draws = SpliceDraws(
        seed=seed,
        keys=keys,
        sentences=checks.tensor("sentences", sentences, torch.int32, rows=rows),
        swappable=checks.tensor("swappable", swappable, torch.bool, rows=rows),
        choices=checks.tensor("choices", choices, torch.int32, rows=rows),
        swapped_choices=checks.tensor("swapped_choices", swapped_choices, torch.int32, rows=rows),
        iteration=checks.number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"]),
    )
    drawn = backend.live().ops.draw_splices(draws)
    if drawn is None:
        checks.splice_ranges(draws)
    return drawn


@register(fake=lambda text, offsets, *_: (text.new_empty(_unknown_size()), torch.empty_like(offsets)))
def join_splices(
    text: Tensor,
    offsets: Tensor,
    table: Tensor,
    sentence_offsets: Tensor,
    swapped: Tensor,
    kept_bytes: Tensor,
    completions: Tensor,
    completion_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Join the kept parts of R texts with their completions, one for each of S sentences.

    text, offsets, table, sentence_offsets: what `split_sentences` takes and returns.
    swapped: bool [S], whether the yes or no of the sentence is swapped.
    kept_bytes: int64 [S], how many bytes of the sentence are kept, counted after its swap.
    completions: uint8 [C].
    completion_offsets: int64 [S + 1].
    Returns (text uint8, offsets int64 [R + 1]), where each sentence is its kept bytes + its completion + the gap
    after it.
    """
    checks.present("table", table)
    if table.dim() != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"table: needs shape [S, {len(COLUMNS)}], got {tuple(table.shape)}")
    sentences = len(table)
    splices = Splices(
        text=checks.tensor("text", text, torch.uint8),
        offsets=checks.bounds("offsets", offsets),
        table=checks.tensor("table", table.flatten(), torch.int64).view(-1, len(COLUMNS)),
        sentence_offsets=checks.bounds("sentence_offsets", sentence_offsets, rows=len(offsets) - 1),
        swapped=checks.tensor("swapped", swapped, torch.bool, rows=sentences),
        kept_bytes=checks.tensor("kept_bytes", kept_bytes, torch.int64, rows=sentences),
        completions=checks.tensor("completions", completions, torch.uint8),
        completion_offsets=checks.bounds("completion_offsets", completion_offsets, rows=sentences),
    )
    joined = backend.live().ops.join_splices(splices)
    if joined is None:
        checks.splices(splices)
    return joined
