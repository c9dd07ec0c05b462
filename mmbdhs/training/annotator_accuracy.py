"""Whether an annotator can be trusted: how often it prefers the better response of pairs with a known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbdhs.checks import equal_lengths, kind_of
from mmbdhs.data import as_response, is_null
from mmbdhs.errors import ExampleError
from mmbdhs.evaluation import Estimate, Result, ratio
from mmbdhs.training.annotators import Annotator, Comparison

_COLUMNS = ("images", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class AnnotatorAccuracy(Result):
    """What `annotator_accuracy` returns: shares with 95% intervals, and numbers of comparisons.

    accuracy: share of verdicts for the chosen response among all verdicts.
    decided: share of comparisons with a verdict.
    first: share of verdicts for the response that was shown first; 1/2 without a preference for a position.
    right: number of verdicts for the chosen response.
    wrong: number of verdicts for the rejected response.
    undecided: number of comparisons without a verdict: ties, and answers that could not be read or that contradicted
        each other in the two orders.
    failed: number of comparisons that the annotator skipped because of an error.
    """

    accuracy: Estimate
    decided: Estimate
    first: Estimate
    right: int
    wrong: int
    undecided: int
    failed: int

    def __str__(self) -> str:
        """The shares, one a line, and a line with the numbers."""
        counts = {name: vars(self)[name] for name in ("right", "wrong", "undecided", "failed")}
        return f"{super().__str__()}\n{', '.join(f'{name} {count}' for name, count in counts.items())}"


def annotator_accuracy(annotator: Annotator, pairs: Sequence[Mapping[str, Any]]) -> AnnotatorAccuracy:
    """Measure how often an annotator prefers the chosen response of held-out pairs (section 5.6.1).

    Do this before Online-DPO trains on its verdicts. The paper's Table 10 gives, in percent, for LLaVA-1.6-7B 79.10
    (VLFeedback), 81.88 (RLHF-V) and 92.96 (POVID), and for LLaVA-1.6-34B 90.91, 93.90 and 98.55. A comparison without a
    verdict does not count in the accuracy, because `OnlinePairsSource` leaves it out too. The paper does not say how
    ties were counted, so compare `decided` as well.

    annotator: judges the pairs. Where it has the attribute `symmetric` set, as the annotators of this library have, it
        is asked about each pair once, the chosen response first in every other pair. Otherwise it is asked in both
        orders, and the intervals take the two verdicts about a pair as dependent.
    pairs: preference records as `train` takes them, each response one turn of text. They count as independent.

    Raises ValueError that names the row for a pair that lacks a column or a response, for no pairs, and for an
    annotator that does not return 0, 1 or None for each comparison; TypeError where pairs is no list. Errors of the
    annotator are passed on.
    """
    equal_lengths(pairs=pairs)
    if not len(pairs):
        raise ValueError("pairs: needs at least one, got none")
    once = getattr(annotator, "symmetric", False)
    # (row, place of the chosen response)
    asked = [(row, place) for row in range(len(pairs)) for place in ((row % 2,) if once else (0, 1))]
    failed_before = getattr(annotator, "failed", 0)
    verdicts = _verdicts(annotator, [pair_comparison(pairs[row], row, place) for row, place in asked])
    failed = getattr(annotator, "failed", 0) - failed_before
    rows = [row for row, _ in asked]
    right = [verdict == place for verdict, (_, place) in zip(verdicts, asked, strict=True)]
    decided = [verdict is not None for verdict in verdicts]
    return AnnotatorAccuracy(
        accuracy=ratio(right, decided, rows),
        decided=ratio(decided, [1] * len(rows), rows),
        first=ratio([verdict == 0 for verdict in verdicts], decided, rows),
        right=sum(right),
        wrong=sum(decided) - sum(right),
        undecided=len(rows) - sum(decided) - failed,
        failed=failed,
    )


def pair_comparison(pair: Any, row: int, place: int) -> Comparison:
    """The comparison of a pair's responses, the chosen one at `place`, 0 or 1."""
    if not isinstance(pair, Mapping) or not set(_COLUMNS) <= set(pair):
        found = ", ".join(map(str, pair)) if isinstance(pair, Mapping) else kind_of(pair)
        raise ValueError(f"pairs: row {row}: needs the columns {', '.join(_COLUMNS)}, got {found or 'none'}")
    texts = [_text(pair, row, name) for name in ("chosen", "rejected")]
    key = row if is_null(pair.get("key")) else pair["key"]
    return Comparison(key, pair["images"], pair["prompt"], texts[place], texts[1 - place])


def _text(pair: Mapping[str, Any], row: int, name: str) -> str:
    try:
        response = as_response(pair[name], name)
    except ExampleError as error:
        raise ValueError(f"pairs: row {row}: {error}") from error
    if not isinstance(response, str):
        raise ValueError(f"pairs: row {row}: {name}: needs one turn of text, got {len(response)} message(s)")
    return response


def _verdicts(annotator: Annotator, comparisons: list[Comparison]) -> list[int | None]:
    verdicts = list(annotator(comparisons))
    if len(verdicts) != len(comparisons) or not all(verdict in (0, 1, None) for verdict in verdicts):
        raise ValueError(f"annotator: needs 0, 1 or None for each of {len(comparisons)} comparisons, got {verdicts}")
    return verdicts
