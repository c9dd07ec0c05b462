"""What all benchmarks' results have in common."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import fields

from mmbdhs.evaluation.intervals import Estimate


class Result:
    """Base of the results, frozen dataclasses: their fields that are estimates are the metrics."""

    @property
    def metrics(self) -> dict[str, Estimate]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Estimate)}

    def __str__(self) -> str:
        """One metric a line."""
        width = max(map(len, self.metrics))
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.metrics.items())


def check_lengths(**lists: Sized | None) -> None:
    """Raises ValueError for lists of unequal or no length; those that are None are left out."""
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"{', '.join(lengths)}: need lists of one length above 0, got {lengths}")


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raises ValueError for a string in place of a list of them, TypeError for a list of anything else."""
    if isinstance(texts, str):
        raise ValueError(f"{name}: needs a list of strings, got the string {texts!r}")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}: needs strings, got {text!r} at {number}")
