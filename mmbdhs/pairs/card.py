"""The dataset card of a run: README.md, as the Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbdhs.pairs.figures import Figures
from mmbdhs.runs import fill_card

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def dataset_card(record: Mapping[str, Any], figures: Figures, shards: int, total: int) -> str:
    """The text of a dataset card.

    record: of run.json.
    figures: of the shards that are there.
    shards, total: how many are there, and how many the run has.
    """
    return fill_card(
        "mmbdhs.pairs",
        "card.md.jinja",
        record=record,
        figures=figures,
        accepted=figures.accepted(record["config"]["max_iterations"]),
        dropped=figures.of("dropped"),
        quantiles=_QUANTILES,
        shards=shards,
        total=total,
        size=next((name for most, name in _SIZES if figures.pairs < most), "10M<n<100M"),
    )
