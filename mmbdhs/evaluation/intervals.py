"""Estimates with 95% intervals, for metrics that are ratios of sums and for means over runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
_TAIL = (1 + LEVEL) / 2
_Z = NormalDist().inv_cdf(_TAIL)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval.

    value: the estimate.
    low, high: the ends of the interval.
    count: number of items that it comes from.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def with_interval(self) -> str:
        """The value and its interval as text."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __str__(self) -> str:
        return f"{self.with_interval} (n = {self.count})"


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The ratio R = Σy / Σx of items with 0 ≤ y ≤ x, with the 95% interval of the population's ratio.

    numerators, denominators: y and x, counts, one per item. Items with x = 0 do not count.
    clusters: which items belong together (the image of each question); None if items are independent.

    With y_c, x_c the sums of m clusters, the linearised variance of R is (Cochran, Sampling Techniques, 1977, ch. 6)
        V = m / (m−1) · (Σx − 1) / Σx · Σ_c (y_c − R x_c)² / (Σx)²,
    which R(1−R)/V independent trials would have. Their number, at most Σx and corrected for the few degrees of freedom
    of m clusters by (t_{Σx−1} / t_{m−1})² (Korn and Graubard, Survey Methodology 24, 1998), goes into Wilson's score
    interval (JASA 22, 1927). One item per cluster and x = 1 is Wilson's interval itself. Where V says nothing (R = 0,
    R = 1, m = 1) the clusters count as the trials, the fewest they can be worth, so no interval has width 0.

    Without any x > 0 the value is NaN and the interval [0, 1].
    """
    y, x = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    _check_lengths(y, x, clusters)
    _check_shares(y, x)
    kept = x > 0
    if not kept.any():
        return Estimate(math.nan, 0.0, 1.0, 0)
    value = y.sum() / x.sum()
    trials = _trials(value, *_cluster_sums(y, x, clusters, kept))
    return Estimate(float(value), *wilson(value, trials), int(kept.sum()))


def ratios(
    counts: Sequence[Mapping[str, tuple[float, float]]], clusters: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """The `ratio` of each metric.

    counts: of each item, by the metric's name; one or more, all with the same names.
    clusters: as of `ratio`.
    """
    pairs = {name: zip(*(count[name] for count in counts), strict=True) for name in counts[0]}
    return {name: ratio(y, x, clusters) for name, (y, x) in pairs.items()}


def quotient(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The ratio R = Σy / Σx of items with any finite y and x, with the 95% interval of the population's ratio.

    numerators, denominators: y and x, one per item. Items with y = x = 0 do not count.
    clusters: as of `ratio`.

    With y_c, x_c the sums of m clusters, the interval is R ± t_{m−1} √V, V = m / (m−1) · Σ_c (y_c − R x_c)² / (Σx)²
    (Cochran, Sampling Techniques, 1977, ch. 6). With x = 1 and one item per cluster it is that of `mean_interval`. It
    is unbounded for one cluster, and has width 0 where y_c = R x_c for every cluster.

    Where Σx = 0 the value is NaN and the interval unbounded.
    """
    y, x = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    _check_lengths(y, x, clusters)
    if not (np.isfinite(y) & np.isfinite(x)).all():
        raise ValueError("numerators, denominators: need finite numbers, got infinity or NaN")
    kept = (x != 0) | (y != 0)
    if not x.sum():
        return Estimate(math.nan, -math.inf, math.inf, int(kept.sum()))
    value = float(y.sum() / x.sum())
    y_c, x_c = _cluster_sums(y, x, clusters, kept)
    m = len(x_c)
    if m == 1:
        return Estimate(value, -math.inf, math.inf, int(kept.sum()))
    half = stdtrit(m - 1, _TAIL) * math.sqrt(m / (m - 1) * np.square(y_c - value * x_c).sum()) / abs(x.sum())
    return Estimate(value, float(value - half), float(value + half), int(kept.sum()))


def _cluster_sums(
    y: np.ndarray, x: np.ndarray, clusters: Sequence[Hashable] | None, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of y and x over each cluster's items that count."""
    names = range(len(x)) if clusters is None else clusters
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name, keep in zip(names, kept, strict=True) if keep])
    return np.bincount(index, y[kept]), np.bincount(index, x[kept])


def _trials(value: float, y: np.ndarray, x: np.ndarray) -> float:
    """The effective sample size of clusters with sums y, x [m]."""
    m, total = len(x), x.sum()
    if m == 1 or value in (0, 1):
        return m
    variance = m / (m - 1) * (total - 1) / total * np.square(y - value * x).sum() / total**2
    trials = min(value * (1 - value) / variance, total) if variance > 0 else total
    return trials * (stdtrit(total - 1, _TAIL) / stdtrit(m - 1, _TAIL)) ** 2


def wilson(value: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a share `value` of `trials` independent trials, which need not be a whole number."""
    shrink = 1 + _Z**2 / trials
    middle = (value + _Z**2 / (2 * trials)) / shrink
    half = _Z / shrink * math.sqrt(value * (1 - value) / trials + _Z**2 / (4 * trials**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values (runs with other seeds, captions) ± t_{n−1} · s / √n (Student, 1908).

    One value has the interval (−∞, ∞). Raises ValueError for no value.
    """
    v = np.asarray(values, dtype=float)
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all():
        raise ValueError(f"values: needs one finite number or more, got {values!r}")
    half = stdtrit(len(v) - 1, _TAIL) * v.std(ddof=1) / math.sqrt(len(v)) if len(v) > 1 else math.inf
    mean = float(v.mean())
    return Estimate(mean, float(mean - half), float(mean + half), len(v))


def _check_lengths(y: np.ndarray, x: np.ndarray, clusters: Sequence[Hashable] | None) -> None:
    lengths = [len(y), len(x), *([] if clusters is None else [len(clusters)])]
    if len(set(lengths)) > 1:
        raise ValueError(f"numerators, denominators, clusters: need one length, got {lengths}")


def _check_shares(y: np.ndarray, x: np.ndarray) -> None:
    if not ((y >= 0) & (y <= x)).all():
        place = int(np.argmin((y >= 0) & (y <= x)))
        raise ValueError(f"numerators: needs 0 ≤ y ≤ x, got y = {y[place]:g}, x = {x[place]:g} at {place}")
