"""What every loss asks of its arguments, said by name.

Values are looked at once per call, in one reduction over all arguments, because reading its answer makes the host wait
for the device. Under torch.compile they are not looked at, so that a loss stays one graph; types, shapes and plain
numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

# An averaged log-probability may come out this far above 0 by rounding.
ROUNDING = 1e-3


class Rule(NamedTuple):
    """Argument `name` needs `need`; `holds` (bool, the shape of `tensor`) says where it does."""

    name: str
    need: str
    tensor: Tensor
    holds: Tensor


def finite(tensors: dict[str, Tensor]) -> list[Rule]:
    """No NaN and no infinity, of which a difference may make a NaN."""
    return [Rule(name, "finite numbers", tensor, tensor.isfinite()) for name, tensor in tensors.items()]


def positive(tensors: dict[str, Tensor]) -> list[Rule]:
    return [Rule(name, "numbers above 0", tensor, tensor > 0) for name, tensor in tensors.items()]


def not_above_zero(tensors: dict[str, Tensor]) -> list[Rule]:
    return [Rule(name, "log-probabilities, at most 0", tensor, tensor <= ROUNDING) for name, tensor in tensors.items()]


def require(*rules: Rule) -> None:
    """Raises the ValueError of the first rule that is broken. Waits for the device once."""
    if torch.compiler.is_compiling() or bool(torch.stack([rule.holds.all() for rule in rules]).all()):
        return
    broken = next(rule for rule in rules if not rule.holds.all())
    place = tuple((~broken.holds).nonzero()[0].tolist())
    raise ValueError(f"{broken.name}: needs {broken.need}, got {broken.tensor[place].item()} at {list(place)}")


def same_shape(tensors: dict[str, Tensor], dims: int | None = None) -> None:
    """All are tensors of one shape, of `dims` dimensions if given, and lie on one device."""
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: needs a tensor, got {type(tensor).__name__}")
        if dims is not None and tensor.dim() != dims:
            raise ValueError(f"{name}: needs {dims} dimension{'s' * (dims > 1)}, got shape {list(tensor.shape)}")
        if tensor.shape != tensors[first].shape:
            expected = list(tensors[first].shape)
            raise ValueError(f"{name}: needs the shape {expected} of {first}, got {list(tensor.shape)}")
        if tensor.device != tensors[first].device:
            raise ValueError(f"{name}: needs the device {tensors[first].device} of {first}, got {tensor.device}")


def widened(tensors: dict[str, Tensor]) -> list[Tensor]:
    """bfloat16 and float16 as float32; float32 and float64 as they are. Raises TypeError for other types."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: needs a floating-point tensor, got {tensor.dtype}")
    return [t if t.dtype in (torch.float32, torch.float64) else t.float() for t in tensors.values()]


def boolean(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name}: needs a bool tensor, got {tensor.dtype}")


def sequences(
    lengths: dict[str, Tensor | None] | None = None, *, at_most_zero: bool = False, **values: Tensor
) -> list[Tensor]:
    """One number per sequence: finite, of one shape [B], widened. lengths: of that shape and positive, or all None."""
    given = {name: length for name, length in (lengths or {}).items() if length is not None}
    if lengths and 0 < len(given) < len(lengths):
        missing = next(name for name in lengths if name not in given)
        raise ValueError(f"{missing}: needs a tensor where {next(iter(given))} has one, got None")
    same_shape(values | given, dims=1)
    wide = widened(values)
    require(*finite(values), *positive(given), *(not_above_zero(values) if at_most_zero else ()))
    return wide


def tokens(mask: Tensor, *, at_least: int = 0, **values: Tensor) -> list[Tensor]:
    """One number per token: of one shape [B, T], finite where the bool mask says so, widened, 0 everywhere else. The
    mask holds `at_least` so many tokens."""
    same_shape(values | {"mask": mask}, dims=2)
    boolean("mask", mask)
    # Padding may hold anything, also NaN, which would spoil gradients even behind a product with 0.
    wide = [tensor.masked_fill(~mask, 0.0) for tensor in widened(values)]
    count = mask.sum().reshape(1)
    enough = Rule("mask.sum()", f"at least {at_least}", count, count >= at_least)
    require(*finite(dict(zip(values, wide, strict=True))), enough)
    return wide


def above_zero(**numbers: float) -> None:
    for name, number in numbers.items():
        if not _is_number(number) or not 0 < number < math.inf:
            raise ValueError(f"{name}: needs a finite number above 0, got {number!r}")


def at_least_zero(**numbers: float) -> None:
    for name, number in numbers.items():
        if not _is_number(number) or not 0 <= number < math.inf:
            raise ValueError(f"{name}: needs a finite number of at least 0, got {number!r}")


def finite_number(**numbers: float) -> None:
    for name, number in numbers.items():
        if not _is_number(number) or not -math.inf < number < math.inf:
            raise ValueError(f"{name}: needs a finite number, got {number!r}")


def unit_interval(**numbers: float) -> None:
    for name, number in numbers.items():
        if not _is_number(number) or not 0 <= number <= 1:
            raise ValueError(f"{name}: needs a number in [0, 1], got {number!r}")


def below_half(label_smoothing: float) -> None:
    if not _is_number(label_smoothing) or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: needs a number in [0, 0.5), got {label_smoothing!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_on_error(on_error: str) -> None:
    """Raises ValueError for what is neither "raise" nor "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: needs 'raise' or 'skip', got {on_error!r}")


def equal_lengths(**lists: Sequence | None) -> None:
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    strings = [name for name, values in lists.items() if isinstance(values, str)]
    if strings or len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(lengths)}: need lists of equal length, got {strings or lengths}")
