"""The base of all benchmarks' results, and checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from mmbdhs.evaluation.intervals import Estimate


class Result:
    """Base of the results, which are frozen dataclasses."""

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The fields that are estimates, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}

    def __str__(self) -> str:
        """The metrics, one a line."""
        width = max(map(len, self.metrics))
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.metrics.items())


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check_lengths(**lists: Sized | None) -> None:
    """Raise ValueError for lists of unequal length and for empty lists. None is left out."""
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"{', '.join(lengths)}: need lists of one length above 0, got {lengths}")


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raise ValueError for a string in place of a list of strings, TypeError for a list of anything else."""
    if isinstance(texts, str):
        raise ValueError(f"{name}: needs a list of strings, got the string {texts!r}")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}: needs strings, got {text!r} at {number}")
