"""From what each answer counts to metrics with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from mmbdhs.evaluation.benchmark import Outcome
from mmbdhs.evaluation.intervals import Estimate, quotient, ratio

ALL = "all"


def estimates(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Estimate]]:
    """The metrics of each group with 95% intervals, the group "all" first and the others in the order of their names.

    outcomes: of all answers. Their order changes nothing but the last bits of sums.

    A metric with 0 ≤ numerator ≤ denominator for every answer is a share and has the interval of `ratio`. Any other,
    such as a mean of ratings, has that of `quotient`. Questions about one image are one cluster.

    Raises ValueError for no outcome, an id that occurs twice and a group named "all".
    """
    _check(outcomes)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.counts)
    shares = {name: all(0 <= y <= x for y, x in _counts(outcomes, name)) for name in names}
    groups = [ALL, *sorted({group for outcome in outcomes for group in outcome.groups})]
    members = {group: [outcome for outcome in outcomes if group == ALL or group in outcome.groups] for group in groups}
    return {group: {name: _estimate(found, name, shares[name]) for name in names} for group, found in members.items()}


def _estimate(outcomes: Sequence[Outcome], name: str, share: bool) -> Estimate:
    images = [outcome.image for outcome in outcomes if name in outcome.counts]
    counts = _counts(outcomes, name)
    estimator = ratio if share else quotient
    return estimator([y for y, _ in counts], [x for _, x in counts], images)


def _counts(outcomes: Sequence[Outcome], name: str) -> list[tuple[float, float]]:
    return [outcome.counts[name] for outcome in outcomes if name in outcome.counts]


def _check(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise ValueError("outcomes: needs one or more, got none")
    seen: set[str] = set()
    for outcome in outcomes:
        if outcome.id in seen:
            raise ValueError(f"outcomes: needs every id once, got {outcome.id!r} twice")
        if ALL in outcome.groups:
            raise ValueError(f"outcomes: needs other groups than {ALL!r}, got it for {outcome.id!r}")
        seen.add(outcome.id)
