"""The native ops: checked, registered with `torch.library` as `mmbdhs::…`, run by the live backend.

Tensors are on the CPU unless said otherwise. Keys are 64-bit, held by their bit pattern in int64; `seed` is
an integer in 0 … 2^64−1. Ragged arrays are flat, with int64 offsets that have one entry more than there are
rows. Texts are UTF-8 bytes, and positions count bytes from the first byte of the row they belong to. A wrong
dtype raises TypeError, any other wrong argument ValueError; both name it.
"""

from __future__ import annotations

import operator

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import backend, checks
from mmbdhs.native.reference import ADDRESS_LAYOUT, CUT, IMAGE_MASK, NO_STOP, NOISE, SWAP, TOKEN, UNDECIDED
from mmbdhs.native.registry import register

__all__ = [
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

_COUNT_LIMIT = 1 << 34  # 2^32 blocks of 4 items each


def sample_visible(seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Draw the visible image tokens of E examples (Eq. 6): token i stays visible iff u_i ≥ threshold.

    keys int64 [E], tokens int32 [E] (image tokens of each example), both on the CPU or both on one CUDA
    device. Returns (indices int32 [number visible], rising within each example; offsets int64 [E + 1]) on
    that device.
    """
    return torch.ops.mmbdhs.sample_visible(_signed(seed), keys, iteration, tokens, threshold)


def random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), `count` at each of N addresses: keys int64 [N], sentences int32 [N].

    Returns float64 [N, count], each a multiple of 2^-32.
    """
    return torch.ops.mmbdhs.random_uniform(_signed(seed), keys, purpose, iteration, sentences, count)


def split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Split R texts into sentences by the rule of `mmbdhs.native.sentence_rule`: text uint8 [T], offsets
    int64 [R + 1].

    Returns (table int64 [S, 4], sentence_offsets int64 [R + 1]). Columns: content_end, the end without white
    space; span_end, where the next span begins (spans tile the text); word_begin and word_end of a leading
    yes or no, else -1.
    """
    return torch.ops.mmbdhs.split_sentences(text, offsets)


def sentence_ends(text: Tensor, offsets: Tensor, begins: Tensor, final: Tensor) -> Tensor:
    """Where a sentence of each of N texts ends, by the rule that splits texts.

    text uint8 [T], offsets int64 [N + 1], begins int64 [N] (where the sentence begins), final bool [N] (no
    more text will follow). Returns int64 [N]: the byte before which the sentence ends; NO_STOP if it is still
    going on; UNDECIDED if it may have ended, but more text could undo that. With `final` the end of the text
    ends the sentence.
    """
    return torch.ops.mmbdhs.sentence_ends(text, offsets, begins, final)


def draw_splices(
    seed: int,
    keys: Tensor,
    iteration: int,
    sentences: Tensor,
    swappable: Tensor,
    choices: Tensor,
    swapped_low: Tensor,
    swapped_choices: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw the yes/no swap and the cut of N sentences (Algorithm 1).

    keys int64 [N], sentences int32 [N], swappable bool [N]; choices, swapped_low, swapped_choices int32 [N].
    Returns (swapped bool [N]: swappable and ξ ≥ 1/2; choice int32 [N]: uniform on 0 … choices−1, for a
    swapped sentence on swapped_low … swapped_choices−1). An empty range gives its lower end.
    """
    return torch.ops.mmbdhs.draw_splices(
        _signed(seed), keys, iteration, sentences, swappable, choices, swapped_low, swapped_choices
    )


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
    """Join the kept parts of R texts with what completes them, one completion for each of S sentences.

    text, offsets, table and sentence_offsets as `split_sentences` takes and gives them; swapped bool [S];
    kept_bytes int64 [S], counted in the sentence after its yes/no swap; completions uint8, completion_offsets
    int64 [S + 1]. Each sentence becomes its kept bytes + its completion + its own white space. Returns
    (uint8, offsets int64 [R + 1]).
    """
    return torch.ops.mmbdhs.join_splices(
        text, offsets, table, sentence_offsets, swapped, kept_bytes, completions, completion_offsets
    )


def _signed(seed: int) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {seed!r}") from None
    checks.number("seed", value, 1 << 64)
    return value - (1 << 64) if value >> 63 else value


# Registered implementations: check every argument, then hand over to the live twin.


def _sample_visible(seed: int, keys: Tensor, iteration: int, tokens: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    checks.present("keys", keys)
    keys = checks.tensor("keys", keys, torch.int64, device=keys.device)
    tokens = checks.tensor("tokens", tokens, torch.int32, rows=len(keys), device=keys.device)
    checks.number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"])
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    drawn = backend.live().twin.sample_visible(seed, keys, iteration, tokens, threshold)
    if drawn is None:
        checks.at_least_zero("tokens", tokens)
    return drawn


def _random_uniform(seed: int, keys: Tensor, purpose: int, iteration: int, sentences: Tensor, count: int) -> Tensor:
    keys, iteration, sentences = checks.address(keys, iteration, sentences)
    checks.number("purpose", purpose, ADDRESS_LAYOUT["purpose_limit"])
    checks.number("count", count, _COUNT_LIMIT)
    return backend.live().twin.random_uniform(seed, keys, purpose, iteration, sentences, count)


def _split_sentences(text: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    text = checks.tensor("text", text, torch.uint8)
    return backend.live().twin.split_sentences(text, checks.ragged("offsets", offsets, len(text)))


def _sentence_ends(text: Tensor, offsets: Tensor, begins: Tensor, final: Tensor) -> Tensor:
    text = checks.tensor("text", text, torch.uint8)
    offsets = checks.ragged("offsets", offsets, len(text))
    rows = len(offsets) - 1
    begins = checks.at_least_zero("begins", checks.tensor("begins", begins, torch.int64, rows=rows))
    final = checks.tensor("final", final, torch.bool, rows=rows)
    late = begins.numpy() > np.diff(offsets.numpy())
    if late.any():
        row = int(late.argmax())
        raise ValueError(f"begins must not pass the end of its text, got {int(begins[row])} at row {row}")
    return backend.live().twin.sentence_ends(text, offsets, begins, final)


def _draw_splices(
    seed: int,
    keys: Tensor,
    iteration: int,
    sentences: Tensor,
    swappable: Tensor,
    choices: Tensor,
    swapped_low: Tensor,
    swapped_choices: Tensor,
) -> tuple[Tensor, Tensor]:
    keys = checks.tensor("keys", keys, torch.int64)
    swappable = checks.tensor("swappable", swappable, torch.bool, rows=len(keys))
    columns = {"sentences": sentences, "choices": choices}
    columns |= {"swapped_low": swapped_low, "swapped_choices": swapped_choices}
    numbers = [checks.tensor(name, column, torch.int32, rows=len(keys)) for name, column in columns.items()]
    checks.number("iteration", iteration, ADDRESS_LAYOUT["iteration_limit"])
    drawn = backend.live().twin.draw_splices(seed, keys, iteration, numbers[0], swappable, *numbers[1:])
    if drawn is None:
        checks.splice_ranges(*numbers)
    return drawn


def _join_splices(
    text: Tensor,
    offsets: Tensor,
    table: Tensor,
    sentence_offsets: Tensor,
    swapped: Tensor,
    kept_bytes: Tensor,
    completions: Tensor,
    completion_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    checks.present("table", table)
    if table.dim() != 2 or table.shape[1] != 4:
        raise ValueError(f"table must have shape [S, 4], got {tuple(table.shape)}")
    sentences = len(table)
    splices = (
        checks.tensor("text", text, torch.uint8),
        checks.bounds("offsets", offsets),
        checks.tensor("table", table.flatten(), torch.int64).view(-1, 4),
        checks.bounds("sentence_offsets", sentence_offsets, rows=len(offsets) - 1),
        checks.tensor("swapped", swapped, torch.bool, rows=sentences),
        checks.tensor("kept_bytes", kept_bytes, torch.int64, rows=sentences),
        checks.tensor("completions", completions, torch.uint8),
        checks.bounds("completion_offsets", completion_offsets, rows=sentences),
    )
    joined = backend.live().twin.join_splices(*splices)
    if joined is None:
        checks.splices(*splices)
    return joined


# Shapes and dtypes for tracing.


def _fake_sample_visible(seed, keys, iteration, tokens, threshold):
    size = torch.library.get_ctx().new_dynamic_size()
    return keys.new_empty(size, dtype=torch.int32), keys.new_empty(keys.shape[0] + 1)


def _fake_random_uniform(seed, keys, purpose, iteration, sentences, count):
    return keys.new_empty(keys.shape[0], count, dtype=torch.float64)


def _fake_split_sentences(text, offsets):
    return offsets.new_empty(torch.library.get_ctx().new_dynamic_size(), 4), torch.empty_like(offsets)


def _fake_sentence_ends(text, offsets, begins, final):
    return torch.empty_like(begins)


def _fake_draw_splices(seed, keys, iteration, sentences, swappable, choices, *swapped_ranges):
    return torch.empty_like(swappable), torch.empty_like(choices)


def _fake_join_splices(text, offsets, *splices):
    return text.new_empty(torch.library.get_ctx().new_dynamic_size()), torch.empty_like(offsets)


_SCHEMAS = """
sample_visible(int seed, Tensor keys, int iteration, Tensor tokens, float threshold) -> (Tensor, Tensor)
random_uniform(int seed, Tensor keys, int purpose, int iteration, Tensor sentences, SymInt count) -> Tensor
split_sentences(Tensor text, Tensor offsets) -> (Tensor, Tensor)
sentence_ends(Tensor text, Tensor offsets, Tensor begins, Tensor final) -> Tensor
draw_splices(int seed, Tensor keys, int iteration, Tensor sentences, Tensor swappable, Tensor choices,
    Tensor swapped_low, Tensor swapped_choices) -> (Tensor, Tensor)
join_splices(Tensor text, Tensor offsets, Tensor table, Tensor sentence_offsets, Tensor swapped,
    Tensor kept_bytes, Tensor completions, Tensor completion_offsets) -> (Tensor, Tensor)
"""
_RUNS = (_sample_visible, _random_uniform, _split_sentences, _sentence_ends, _draw_splices, _join_splices)
_FAKES = (
    _fake_sample_visible,
    _fake_random_uniform,
    _fake_split_sentences,
    _fake_sentence_ends,
    _fake_draw_splices,
    _fake_join_splices,
)
for _schema, _run, _fake in zip(_SCHEMAS.replace(",\n", ",").strip().split("\n"), _RUNS, _FAKES, strict=True):
    register(_schema, _run, _fake)
