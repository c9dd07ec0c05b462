"""The images of several examples through the vision tower at once, where each gets what it gets alone.

The tower is the first module around the text decoder that the model calls. Its calls for examples whose arguments have
the same shapes, but for the number of tiles or patches, are put together, and each example's part of the output is
given back to the model in its own forward. Whether that changes more than rounding is found out once for every model,
for equal numbers and for mixed ones.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmbdhs.vlm.attention_interface import attention_through
from mmbdhs.vlm.decoder_inputs import VisionOutput, stop_at
from mmbdhs.vlm.exactness import agree
from mmbdhs.vlm.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

_MOST_NUMBERS = 1 << 23  # in the arguments of one call: 24 tiles of 336 × 336 pixels, which bounds the memory
_MIXED, _EQUAL = "mixes_vision", "batches_vision"  # attributes of VLM, which say whether a tower does it


class _VisionCall(NamedTuple):
    """A call of the vision tower for one example.

    image_tokens: number of image tokens in the example.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    image_tokens: int

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments that have rows."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]

    @property
    def rows(self) -> int:
        """The number of rows, tiles or patches, of its pixel values."""
        return next((len(leaf) for leaf in self.tensors if leaf.is_floating_point()), 0)

    @property
    def size(self) -> int:
        """How many numbers its tensors hold."""
        return sum(leaf.numel() for leaf in self.tensors)


def vision_outputs(vlm: VLM, examples: Sequence[Mapping[str, Any]]) -> list[VisionOutput | None]:
    """What the vision tower makes of each example's images, for `capture_decoder_inputs`; None for an example for which
    the model itself has to run it.

    examples: the processor's output of each, with batch size 1.
    """
    outputs: list[VisionOutput | None] = [None] * len(examples)
    if len(examples) > 1 and vlm.batches_vision is not False:
        calls = _vision_calls(vlm, examples)
        for sizes in (_MIXED, _EQUAL):
            for numbers in _groups({n: call for n, call in calls.items() if outputs[n] is None}, sizes):
                for number, output in zip(numbers, _together(vlm, [calls[n] for n in numbers], sizes), strict=True):
                    outputs[number] = output
    return outputs


def _vision_calls(vlm: VLM, examples: Sequence[Mapping[str, Any]]) -> dict[int, _VisionCall]:
    """The calls, by the numbers of their examples. A model without any is asked once."""
    asked = (_vision_call(vlm, inputs) if vlm.batches_vision is not False else None for inputs in examples)
    return {number: call for number, call in enumerate(asked) if call}


def _vision_call(vlm: VLM, inputs: Mapping[str, Any]) -> _VisionCall | None:
    """The model's call of its vision tower; None if it has none, or raises an error before, which it will do again."""
    try:
        call = stop_at(vlm, inputs, vlm.around_decoder)
    except ValueError:
        return None
    if call is None or call.module is vlm.decoder:
        _note(vlm, "calls no module for it")
        return None
    return _VisionCall(*call, image_tokens=int((inputs["input_ids"] == vlm.image_token_id).sum()))


def _groups(calls: Mapping[int, _VisionCall], sizes: str) -> Iterator[list[int]]:
    """The numbers of calls that can be put together, two or more at a time: calls whose tensors have the same shapes,
    or for `_MIXED` other numbers of rows in some of them."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for number, call in calls.items():
        leaves, form = tree_flatten((call.args, call.kwargs))
        kind: Hashable = (id(call.module), repr(form), *(_kind(leaf, sizes == _MIXED) for leaf in leaves))
        alike[kind].append(number)
    for numbers in alike.values():
        for group in _bounded(numbers, [calls[number].size for number in numbers]):
            rows = {calls[number].rows for number in group}
            if len(group) > 1 and (len(rows) > 1 or sizes == _EQUAL):
                yield group


def _bounded(numbers: list[int], counts: list[int]) -> Iterator[list[int]]:
    """The numbers in their order, cut into groups of at most `_MOST_NUMBERS` in all, or of one."""
    group: list[int] = []
    total = 0
    for number, count in zip(numbers, counts, strict=True):
        if group and total + count > _MOST_NUMBERS:
            yield group
            group, total = [], 0
        group, total = [*group, number], total + count
    yield group


def _kind(leaf: Any, any_rows: bool) -> Hashable:
    """What two leaves of arguments have in common if they can be put together.

    any_rows: whether tensors may have different numbers of rows.
    """
    if isinstance(leaf, Tensor) and leaf.ndim:
        return leaf.shape[1:] if any_rows else leaf.shape, leaf.dtype, leaf.device
    return leaf if leaf is None or isinstance(leaf, (bool, int, float, str)) else id(leaf)


def _together(vlm: VLM, calls: list[_VisionCall], sizes: str) -> list[VisionOutput | None]:
    """The output of each call, made by one."""
    if getattr(vlm, sizes) is None:
        setattr(vlm, sizes, _agrees(vlm, calls))
        if vlm.batches_vision is False:
            _note(vlm, "encodes several together in another way")
        elif vlm.mixes_vision is False:
            _LOG.info("only images of one size are encoded together: %s encodes mixed ones in another way", vlm.name)
    # Also right after the comparison, which runs in the model's own precision and without gradients: a policy and its
    # reference have to round alike from the first call on.
    outputs = _outputs(vlm, calls) if getattr(vlm, sizes) else None
    return [None] * len(calls) if outputs is None else [VisionOutput(calls[0].module, one) for one in outputs]


def _note(vlm: VLM, reason: str) -> None:
    """Remember and say that this model's examples go one by one."""
    vlm.batches_vision = vlm.mixes_vision = False
    _LOG.info("images are encoded for one example at a time: %s %s", vlm.name, reason)


def _outputs(vlm: VLM, calls: list[_VisionCall]) -> list[Any] | None:
    """The output of each call, made by one; None where the outputs cannot be told apart."""
    flat = [tree_flatten((call.args, call.kwargs)) for call in calls]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].ndim else column[0] for column in columns
    ]
    args, kwargs = tree_unflatten(joined, flat[0][1])
    with attention_through(None, vlm.mask_configs):
        leaves, form = tree_flatten(calls[0].module(*args, **kwargs))
    parts = [_parts(leaf, calls) if isinstance(leaf, Tensor) else [leaf] * len(calls) for leaf in leaves]
    return None if None in parts else [tree_unflatten(list(own), form) for own in zip(*parts, strict=True)]


def _parts(output: Tensor, calls: list[_VisionCall]) -> Sequence[Tensor] | None:
    """The part of an output that belongs to each call: one row for each image token, or equally many for each row of
    the pixel values. None where it has no such parts."""
    shares = [call.image_tokens for call in calls]
    if not output.ndim or len(output) != sum(shares):
        shares = [call.rows for call in calls]
    total = sum(shares)
    if not output.ndim or not total or any(len(output) * share % total for share in shares):
        return None
    return output.split([len(output) * share // total for share in shares])


@torch.no_grad()
def _agrees(vlm: VLM, calls: list[_VisionCall]) -> bool | None:
    """Whether the calls give together what each gives alone; None if these calls cannot tell, because they are equal or
    their outputs are not finite."""
    tensors = [[leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)] for call in calls]
    differ = any(not torch.equal(leaf, first) for own in tensors for leaf, first in zip(own, tensors[0], strict=True))
    with vlm.evaluation_mode(), attention_through(None, vlm.mask_configs):
        alone = [tree_leaves(call.module(*call.args, **call.kwargs)) for call in calls]
        finite = all(leaf.isfinite().all() for own in alone for leaf in own if isinstance(leaf, Tensor))
        if not differ or not finite:
            return None
        together = [tree_leaves(output) for output in _outputs(vlm, calls) or []]
    return len(together) == len(alone) and all(map(_equal, together, alone))


def _equal(found: list[Any], expected: list[Any]) -> bool:
    """Whether the leaves of two outputs differ by no more than rounding."""
    pairs = [pair for pair in zip(found, expected, strict=False) if isinstance(pair[1], Tensor)]
    alike = (a.shape == b.shape and (torch.equal(a, b) or agree(a, b)) for a, b in pairs)
    return len(found) == len(expected) and all(alike)
