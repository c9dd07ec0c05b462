"""Eq. 7 on 5,000 references: splitting, drawing swaps and cuts, joining with completions.

Against vectorised NumPy, once with its own unseeded stream and once with the same addressed draws, and against plain
Python. Joined texts are equal, byte for byte, where the draws are. "hot" repeats the
same call; "cold" flushes the caches before each call.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from measure import cache_flush, median_of, thread_counts, wall_seconds
from table import Options, Table
from torch import Tensor

from mmbdhs.native import COUNTERPARTS, SpliceDraws, ops, reference, sentence_rule

SENTENCES = (
    "Yes, there is a red bus at the crossing.",
    "No, the man in the dark coat holds nothing.",
    "A woman walks her dog past the shop, which has a green door and a large window.",
    "The sky above the tall buildings is clear and blue.",
    "Dr. Smith bought 3.5 kg of apples for about 4.20 dollars, i.e. more than the others did!",
)
COLUMNS = {
    **{"work": "<5", "references": ">4", "sentences": ">4", "threads": ">1", "caches": "<4"},
    **{name: ">8.3f" for name in ("ours", "numpy", "addressed", "python")},
    **{f"{name}_over_ours": ">5.1f" for name in ("numpy", "addressed", "python")},
}
CLOCKS = {
    "hot": lambda call, _: wall_seconds(call, call),
    "cold": lambda call, _: wall_seconds(call, cache_flush(torch.device("cpu"))),
}


def main(options: Options) -> None:
    print("\nms; draw: swaps and cuts; join: kept parts, completions and white space; addressed: NumPy, same draws")
    batch = Batch.make(300 if options.quick else 5000)
    sizes = {"references": len(batch.offsets) - 1, "sentences": len(batch.table)}
    with Table("splice", COLUMNS, options) as table:
        for threads in thread_counts(torch.device("cpu"))[: 1 if options.quick else None]:
            torch.set_num_threads(threads)
            for (work, sides), caches in product(contestants(batch).items(), CLOCKS):
                table.add(work=work, **sizes, caches=caches, **measure(sides, caches, runs=3 if options.quick else 15))


def measure(sides: dict[str, Callable[[], Any]], caches: str, runs: int) -> dict[str, float]:
    """Milliseconds of each side, and how many times ours the others take."""
    seconds = median_of(runs, *sides.values(), seconds=CLOCKS[caches])
    times = dict(zip(sides, (1e3 * t for t in seconds), strict=True))
    return times | {f"{name}_over_ours": times[name] / times["ours"] for name in times if name != "ours"}


@dataclass(frozen=True)
class Batch:
    """References in the layout of `ops`, completions, and the columns of `ops.draw_splices`: a sentence,
    swapped or not, may be cut after any of its bytes."""

    text: Tensor
    offsets: Tensor
    table: Tensor
    sentence_offsets: Tensor
    completions: Tensor
    completion_offsets: Tensor
    begins: Tensor
    swappable: Tensor
    choices: Tensor
    swapped_choices: Tensor

    @classmethod
    def make(cls, references: int) -> Batch:
        rng = random.Random(0)
        texts = [" ".join(rng.choices(SENTENCES, k=rng.randint(1, 7))).encode() for _ in range(references)]
        text, offsets = ragged(texts)
        table, sentence_offsets = ops.split_sentences(text, offsets)
        begins = torch.cat([table.new_zeros(1), table[:-1, 1]])
        begins[sentence_offsets[:-1]] = 0
        content_end, _, word_begin, word_end, _ = table.T
        swappable, word = word_begin >= 0, word_end - word_begin
        length = content_end - begins
        swapped_length = torch.where(swappable, length + 5 - 2 * word, 0)  # "yes" has 3 letters, "no" has 2
        ranges = (x.int() for x in (length, swapped_length))
        endings = [b" and then some more of it." * rng.randint(1, 3) for _ in table]
        return cls(text, offsets, table, sentence_offsets, *ragged(endings), begins, swappable, *ranges)

    def spans(self) -> tuple[Tensor, ...]:
        """The texts and their sentence table, as `join_splices` takes them."""
        return self.text, self.offsets, self.table, self.sentence_offsets

    def ranges(self) -> tuple[Tensor, ...]:
        """The columns of `draw_splices` after the addresses."""
        return self.swappable, self.choices, self.swapped_choices

    def addresses(self) -> tuple[Tensor, Tensor]:
        """Example key int64 and number int32 of each sentence."""
        counts = self.sentence_offsets.diff()
        keys = torch.arange(len(counts)).repeat_interleave(counts)
        return keys, (torch.arange(len(keys)) - self.sentence_offsets[:-1].repeat_interleave(counts)).int()


def ragged(rows: list[bytes]) -> tuple[Tensor, Tensor]:
    """Rows as flat uint8 and int64 offsets."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return torch.from_numpy(np.frombuffer(b"".join(rows), np.uint8).copy()), torch.from_numpy(offsets)


def contestants(batch: Batch) -> dict[str, dict[str, Callable[[], Any]]]:
    """The calls that do each kind of work, after a check that their results are equal."""
    own, by_numpy = ours(batch), numpy_version(batch)
    addressed = addressed_draw(batch), by_numpy[1]
    pairs = {"ours": own, "numpy": by_numpy, "addressed": addressed, "python": python_version(batch)}
    drawn = {name: draw() for name, (draw, _) in pairs.items()}
    for first, second in zip(drawn["ours"], drawn["addressed"], strict=True):
        assert first.tolist() == second.tolist(), "the addressed draws differ"
    texts = {name: bytes(join(*drawn["numpy"])) for name, (_, join) in pairs.items()}
    assert len(set(texts.values())) == 1, "the sides joined different texts"
    raw = [bytes(batch.text[begin:end].numpy()) for begin, end in pairwise(batch.offsets.tolist())]
    split = {
        "ours": lambda: ops.split_sentences(*batch.spans()[:2]),
        "python": lambda: [row for text in raw for row in sentence_rule.split(text)],
    }
    assert [list(row) for row in split["python"]()] == batch.table.tolist(), "the sides split differently"
    both = {name: (lambda draw=draw, join=join: join(*draw())) for name, (draw, join) in pairs.items()}
    joins = {name: (lambda join=join, name=name: join(*drawn[name])) for name, (_, join) in pairs.items()}
    return {"split": split, "draw": {name: draw for name, (draw, _) in pairs.items()}, "join": joins, "both": both}


Sides = tuple[Callable[[], tuple[Any, Any]], Callable[[Any, Any], Any]]


def ours(batch: Batch) -> Sides:
    """() -> (swapped, kept bytes) and (swapped, kept bytes) -> joined text."""
    keys, numbers = batch.addresses()

    def draw() -> tuple[Tensor, Tensor]:
        swapped, kept = ops.draw_splices(0, keys, 0, numbers, *batch.ranges())
        return swapped, kept.long()

    def join(swapped: Any, kept: Any) -> np.ndarray:
        draws = torch.as_tensor(swapped), torch.as_tensor(kept)
        return ops.join_splices(*batch.spans(), *draws, batch.completions, batch.completion_offsets)[0].numpy()

    return draw, join


def addressed_draw(batch: Batch) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The draws of `ours`, in NumPy."""
    keys, numbers = batch.addresses()

    def draw() -> tuple[np.ndarray, np.ndarray]:
        swapped, kept = reference.draw_splices(SpliceDraws(0, keys, 0, numbers, *batch.ranges()))
        return swapped.numpy(), kept.long().numpy()

    return draw


def numpy_version(batch: Batch) -> Sides:
    """The joined text is one gather from a pool of all texts: five pieces a sentence, some of them empty."""
    rng = np.random.default_rng()
    swappable, length, swapped_length = (x.numpy() for x in batch.ranges())
    text, offsets, table, sentence_offsets = (x.numpy() for x in batch.spans())
    completions, completion = batch.completions.numpy(), batch.completion_offsets.numpy()
    words = np.frombuffer(b"YesNoyesno", np.uint8)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        coin, cut = rng.random((2, len(swappable)), dtype=np.float32)
        swapped = swappable & (coin >= 0.5)
        return swapped, (cut * np.where(swapped, swapped_length, length)).astype(np.int64)

    def join(swapped: np.ndarray, kept: np.ndarray) -> np.ndarray:
        starts = np.repeat(offsets[:-1], np.diff(sentence_offsets))
        content_end, span_end, word_begin, word_end, _ = table.T + starts
        begin = np.concatenate([[0], span_end[:-1]])
        size, upper = word_end - word_begin, text[word_begin] < ord("a")
        other = len(text) + len(completions) + np.where(size == 3, np.where(upper, 3, 8), np.where(upper, 0, 5))
        before, answer = word_begin - begin, 5 - size  # "yes" has 3 letters, "no" has 2
        pieces = [
            (begin, np.where(swapped, np.minimum(before, kept), kept)),
            (other, np.where(swapped, np.clip(kept - before, 0, answer), 0)),
            (word_end, np.where(swapped, np.maximum(kept - before - answer, 0), 0)),
            (len(text) + completion[:-1], np.diff(completion)),
            (content_end, span_end - content_end),
        ]
        sources, sizes = (
            np.stack(column, axis=1, dtype=np.int32, casting="unsafe").ravel() for column in zip(*pieces, strict=True)
        )
        ends = sizes.cumsum(dtype=np.int32)
        pool = np.concatenate([text, completions, words])
        return pool[np.repeat(sources - (ends - sizes), sizes) + np.arange(ends[-1], dtype=np.int32)]

    return draw, join


def python_version(batch: Batch) -> Sides:
    """Loops over bytes."""
    ranges = list(zip(*(x.tolist() for x in batch.ranges()), strict=True))
    bounds = batch.completion_offsets.tolist()
    endings = [bytes(batch.completions[b:e].numpy()) for b, e in pairwise(bounds)]
    rows = []
    for text, s in zip(pairwise(batch.offsets.tolist()), pairwise(batch.sentence_offsets.tolist()), strict=True):
        raw = bytes(batch.text[slice(*text)].numpy())
        rows += [
            (raw, *row)
            for row in zip(batch.begins[slice(*s)].tolist(), *batch.table[slice(*s)].T.tolist(), strict=True)
        ]

    def draw() -> tuple[list[bool], list[int]]:
        swaps, cuts = [], []
        for swappable, length, swapped_length in ranges:
            swaps.append(swappable and random.random() >= 0.5)
            cuts.append(int(random.random() * (swapped_length if swaps[-1] else length)))
        return swaps, cuts

    def join(swaps: list[bool], cuts: list[int]) -> bytes:
        pieces = []
        for (raw, begin, end, span_end, word, word_end, _), swapped, kept, ending in zip(
            rows, swaps, cuts, endings, strict=True
        ):
            sentence = raw[begin:end]
            if swapped:
                sentence = raw[begin:word] + COUNTERPARTS[raw[word:word_end]] + raw[word_end:end]
            pieces += [sentence[:kept], ending, raw[end:span_end]]
        return b"".join(pieces)

    return draw, join
