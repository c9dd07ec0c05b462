"""Checks of arguments, in one wording: "name: needs …, got …".

Checks of tensors look at values once per call, in one reduction over all arguments, because reading the answer makes
the host wait for the device. Under torch.compile values are not looked at, so that a caller stays one graph; types,
shapes and plain numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

# An averaged log-probability may come out this far above 0 by rounding.
ROUNDING = 1e-3


class Rule(NamedTuple):
    """A requirement on the values of an argument.

    name: of the argument.
    need: what its values must be, for the message.
    tensor: the argument.
    holds: bool, in the shape of `tensor`, where its values are so.
    """

    name: str
    need: str
    tensor: Tensor
    holds: Tensor


def finite(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """Rules against NaN and infinity, whose differences would make NaN."""
    return [Rule(name, "finite numbers", tensor, tensor.isfinite()) for name, tensor in tensors.items()]


def positive(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """Rules for numbers above 0."""
    return [Rule(name, "numbers above 0", tensor, tensor > 0) for name, tensor in tensors.items()]


def not_above_zero(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """Rules for log-probabilities, which may be above 0 by no more than rounding."""
    return [Rule(name, "log-probabilities, at most 0", tensor, tensor <= ROUNDING) for name, tensor in tensors.items()]


def require(*rules: Rule) -> None:
    """Raise the ValueError of the first rule that is broken. Waits for the device once."""
    if torch.compiler.is_compiling() or bool(torch.stack([rule.holds.all() for rule in rules]).all()):
        return
    broken = next(rule for rule in rules if not rule.holds.all())
    index = tuple((~broken.holds).nonzero()[0].tolist())
    raise ValueError(f"{broken.name}: needs {broken.need}, got {broken.tensor[index].item()} at {list(index)}")


def same_shape(tensors: Mapping[str, Tensor], dims: int | None = None) -> None:
    """Raise for anything but tensors of one shape on one device, with `dims` dimensions if that is given."""
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


def widened(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors with bfloat16 and float16 as float32; float32 and float64 stay. Raises TypeError for other dtypes."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: needs a floating-point tensor, got {tensor.dtype}")
    return [t if t.dtype in (torch.float32, torch.float64) else t.float() for t in tensors.values()]


def boolean(name: str, tensor: Tensor) -> None:
    """Raise TypeError for anything but a bool tensor."""
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name}: needs a bool tensor, got {tensor.dtype}")


def sequences(
    values: Mapping[str, Tensor], lengths: Mapping[str, Tensor | None] | None = None, *, at_most_zero: bool = False
) -> list[Tensor]:
    """The values, one finite number per sequence and all of one shape [B], widened.

    values: by argument.
    lengths: tensors of that shape with numbers above 0, or all None.
    at_most_zero: whether the values have to be at most 0.
    """
    given = {name: length for name, length in (lengths or {}).items() if length is not None}
    if lengths and 0 < len(given) < len(lengths):
        missing = next(name for name in lengths if name not in given)
        raise ValueError(f"{missing}: needs a tensor where {next(iter(given))} has one, got None")
    same_shape({**values, **given}, dims=1)
    wide = widened(values)
    require(*finite(values), *positive(given), *(not_above_zero(values) if at_most_zero else ()))
    return wide


def tokens(mask: Tensor, *, at_least: int = 0, **values: Tensor) -> list[Tensor]:
    """The values of single tokens, widened and 0 outside the mask, after all checks on them.

    mask: bool [B, T], True for the tokens that count.
    at_least: the fewest tokens that the mask may hold.
    values: float [B, T] each, finite inside the mask; what they hold outside is not read.
    """
    same_shape({**values, "mask": mask}, dims=2)
    boolean("mask", mask)
    # Padding may hold anything, also NaN, which would spoil gradients even when it is multiplied by 0.
    wide = [tensor.masked_fill(~mask, 0.0) for tensor in widened(values)]
    count = mask.sum().reshape(1)
    enough = Rule("mask.sum()", f"at least {at_least}", count, count >= at_least)
    require(*finite(dict(zip(values, wide, strict=True))), enough)
    return wide


def above_zero(**numbers: float) -> None:
    """Raise ValueError for anything but finite numbers above 0."""
    _numbers("a finite number above 0", numbers, math.ulp(0.0), math.nextafter(math.inf, 0))


def at_least_zero(**numbers: float) -> None:
    """Raise ValueError for anything but finite numbers from 0."""
    _numbers("a finite number of at least 0", numbers, 0, math.nextafter(math.inf, 0))


def finite_number(**numbers: float) -> None:
    """Raise ValueError for anything but finite numbers."""
    largest = math.nextafter(math.inf, 0)
    _numbers("a finite number", numbers, -largest, largest)


def below_half(**numbers: float) -> None:
    """Raise ValueError for anything but numbers in [0, 0.5), as a share of flipped labels has to be."""
    _numbers("a number in [0, 0.5)", numbers, 0, math.nextafter(0.5, 0))


def number_in(name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError for anything but a number in [low, high]."""
    _numbers(f"a number in [{low}, {high}]", {name: value}, low, high)


def integer(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raise ValueError for anything but an integer in [low, high]; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bound = f"of at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name}: needs an integer {bound}, got {value!r}")


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError for a value that is not among the choices; True is not 1."""
    if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
        raise ValueError(f"{name}: needs one of {', '.join(map(repr, choices))}, got {value!r}")


def check_on_error(on_error: str) -> None:
    """Raise ValueError for anything but "raise" and "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: needs 'raise' or 'skip', got {on_error!r}")


def given(**values: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def equal_lengths(**lists: Sequence[Any]) -> None:
    """Raise ValueError for lists of unequal length, and TypeError for anything but lists."""
    for name, values in lists.items():
        if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
            raise TypeError(f"{name}: needs a list, got {kind_of(values)}")
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(lengths)}: need lists of equal length, got {lengths}")


def each_of(**columns: Iterable[Any]) -> None:
    """Raise TypeError for columns that are no iterables of examples, but a single text, image or dict."""
    for name, values in columns.items():
        if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
            raise TypeError(f"{name}: needs an iterable with an entry for each example, got {kind_of(values)}")


def instance(name: str, value: Any, kind: type) -> None:
    """Raise TypeError for a value of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: needs a {kind.__name__}, got {kind_of(value)}")


def kind_of(value: Any) -> str:
    """The value for error messages: a short text itself, anything else by its type."""
    return repr(value) if isinstance(value, str) and len(value) < 40 else type(value).__name__


def _numbers(need: str, numbers: dict[str, Any], low: Any, high: Any) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not low <= number <= high:
            raise ValueError(f"{name}: needs {need}, got {number!r}")
