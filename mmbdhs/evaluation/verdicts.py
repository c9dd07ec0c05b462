"""What judges say, read by the rules of the benchmarks' own scripts. None stands for a verdict that cannot be read."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def spoken(verdict: str) -> str:
    """The verdict without the thoughts that some judges write between <think> and </think> first."""
    return _THOUGHTS.sub("", verdict).strip()


def rating(verdict: str) -> int | None:
    """MMHal-Bench's rating from 0 to 6: the only number s for which "rating: s" occurs, in any case."""
    text = spoken(verdict).lower()
    found = [number for number in range(7) if f"rating: {number}" in text]
    return found[0] if len(found) == 1 else None


def two_scores(verdict: str) -> tuple[float, float] | None:
    """LLaVA-Bench's scores of the reference and of the model: the first line is two numbers, with a space or a comma
    between them."""
    numbers = [_number(word) for word in spoken(verdict).split("\n")[0].replace(",", " ").split(" ")]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and None not in numbers else None  # type: ignore[return-value]


def share(verdict: str) -> float | None:
    """MM-Vet's score: the first word, a number from 0 to 1."""
    number = _number(next(iter(spoken(verdict).split()), ""))
    return number if number is not None and 0 <= number <= 1 else None


def object_list(verdict: str) -> list[str] | None:
    """Object HalBench's list of objects: the whole text, or else its last line, is a JSON list of strings."""
    text = spoken(verdict)
    for candidate in (text, text.split("\n")[-1]):
        found = _json(candidate)
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
    return None


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
