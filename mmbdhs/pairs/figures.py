"""The figures of a run: counts that add up over examples and shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmbdhs.data import pair_faults
from mmbdhs.sampling import BDHSSample

Count = tuple[str, Any]


class Figures:
    """How many examples there are of each (name, value):

    ("accepted", k): responses of iteration k that were taken as less similar than the threshold; k = 0 for last
        responses, which are taken although they are not. Those that a filter left out count too.
    ("guided", 0 or 1), ("swapped", 0 or 1): pairs that the reference guided, and with a swapped yes/no.
    ("similarity", s): pairs of a similarity in [s, s + 1) hundredths.
    ("chosen_words", n), ("rejected_words", n): pairs by the length of a response.
    ("faults", name): pairs with a fault that no filter left out.
    ("dropped", kind): examples without a pair, by the kinds of `Dropped`.
    """

    def __init__(self, counts: Iterable[tuple[str, Any, int]] = ()) -> None:
        self._counts: Counter[Count] = Counter({(name, value): count for name, value, count in counts})

    def add_response(self, sample: BDHSSample, threshold: float) -> None:
        """Count a response, before any filter. threshold: ε_s."""
        self._counts["accepted", sample.iterations if sample.similarity < threshold else 0] += 1

    def add_pair(self, chosen: str, sample: BDHSSample) -> None:
        """Count a pair."""
        swapped = any(sentence.swapped for sentence in sample.sentences)
        counted: list[Count] = [
            ("guided", int(sample.guided)),
            ("swapped", int(swapped)),
            ("similarity", int(100 * sample.similarity // 1)),
            ("chosen_words", len(chosen.split())),
            ("rejected_words", len(sample.rejected.split())),
        ]
        self._counts.update(counted)
        self._counts.update(("faults", fault) for fault in pair_faults((chosen, sample.rejected)))

    def add_dropped(self, kind: str) -> None:
        """Count an example without a pair."""
        self._counts["dropped", kind] += 1

    def __add__(self, other: Figures) -> Figures:
        both = Figures()
        both._counts = self._counts + other._counts
        return both

    def rows(self) -> list[tuple[str, Any, int]]:
        """The counts as (name, value, count), sorted and JSON-ready."""
        return sorted((name, value, count) for (name, value), count in self._counts.items())

    def of(self, name: str) -> dict[Any, int]:
        """The counts of one name by value, sorted."""
        return dict(sorted((value, count) for (other, value), count in self._counts.items() if other == name))

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return sum(self.of("guided").values())

    @property
    def examples(self) -> int:
        """The number of examples that were looked at."""
        return self.pairs + sum(self.of("dropped").values())

    def accepted(self, iterations: int) -> list[float]:
        """After 1, 2, … iterations, the share of responses that differ from the reference in meaning (the paper's
        Figure 10)."""
        counts = self.of("accepted")
        responses = max(sum(counts.values()), 1)
        return [sum(counts.get(one, 0) for one in range(1, last + 1)) / responses for last in range(1, iterations + 1)]

    def quantile(self, name: str, share: float) -> float:
        """The value that `share` of the pairs do not exceed; NaN without pairs."""
        counts, below = self.of(name), 0
        needed = share * sum(counts.values())
        for value, count in counts.items():
            below += count
            if below >= needed:
                return float(value)
        return float("nan")
