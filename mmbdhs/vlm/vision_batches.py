"""The images of several examples through the vision tower at once, where each gets what it gets alone.

The tower is the first module around the text decoder that the model calls. Its calls for examples whose arguments have
the same shapes are put together, and each example's part of the output is given back to the model in its own forward.
Whether that changes more than rounding is found out once for every model.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmbdhs.vlm.attention_interface import attention_through
from mmbdhs.vlm.decoder_inputs import ModuleCall, VisionOutput, stop_at
from mmbdhs.vlm.exactness import agree
from mmbdhs.vlm.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

_MOST_NUMBERS = 1 << 23  # in the arguments of one call: 24 tiles of 336 × 336 pixels, which bounds the memory


def vision_outputs(vlm: VLM, examples: Sequence[Mapping[str, Any]]) -> list[VisionOutput | None]:
    """What the vision tower makes of each example's images, for `capture_decoder_inputs`; None for an example for which
    the model itself has to run it.

    examples: the processor's output of each, with batch size 1.
    """
    outputs: list[VisionOutput | None] = [None] * len(examples)
    if len(examples) > 1 and vlm.batches_vision is not False:
        calls = _vision_calls(vlm, examples)
        for numbers in _groups(calls):
            group = [call for number in numbers if (call := calls[number])]
            for number, output in zip(numbers, _together(vlm, group), strict=True):
                outputs[number] = output
    return outputs


def _vision_calls(vlm: VLM, examples: Sequence[Mapping[str, Any]]) -> list[ModuleCall | None]:
    """The call of each example. A model without any is asked once."""
    return [_vision_call(vlm, inputs) if vlm.batches_vision is not False else None for inputs in examples]


def _vision_call(vlm: VLM, inputs: Mapping[str, Any]) -> ModuleCall | None:
    """The model's call of its vision tower; None if it has none, or raises an error before, which it will do again."""
    try:
        call = stop_at(vlm, inputs, vlm.around_decoder)
    except ValueError:
        return None
    if call is None or call.module is vlm.decoder:
        _note(vlm, "calls no module for it")
        return None
    return call


def _groups(calls: Sequence[ModuleCall | None]) -> Iterator[list[int]]:
    """The numbers of calls that can be put together, two or more at a time."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    sizes: dict[Hashable, int] = {}
    for number, call in enumerate(calls):
        if call is not None:
            leaves, form = tree_flatten((call.args, call.kwargs))
            kind: Hashable = (id(call.module), repr(form), *map(_kind, leaves))
            alike[kind].append(number)
            sizes[kind] = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
    for kind, numbers in alike.items():
        most = max(_MOST_NUMBERS // max(sizes[kind], 1), 1)
        groups = (numbers[begin : begin + most] for begin in range(0, len(numbers), most))
        yield from (group for group in groups if len(group) > 1)


def _kind(leaf: Any) -> Hashable:
    """What two leaves of arguments have in common if they can be put together."""
    if isinstance(leaf, Tensor) and leaf.ndim:
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if leaf is None or isinstance(leaf, (bool, int, float, str)) else id(leaf)


def _together(vlm: VLM, calls: list[ModuleCall]) -> list[VisionOutput | None]:
    """The output of each call, made by one."""
    if vlm.batches_vision is None:
        vlm.batches_vision = _agrees(vlm, calls)
        if vlm.batches_vision is False:
            _note(vlm, "encodes several together in another way")
    # Also right after the comparison, which runs in the model's own precision and without gradients: a policy and its
    # reference have to round alike from the first call on.
    outputs = _outputs(vlm, calls) if vlm.batches_vision else None
    return [None] * len(calls) if outputs is None else [VisionOutput(calls[0].module, one) for one in outputs]


def _note(vlm: VLM, reason: str) -> None:
    """Remember and say that this model's examples go one by one."""
    vlm.batches_vision = False
    _LOG.info("images are encoded for one example at a time: %s %s", vlm.name, reason)


def _outputs(vlm: VLM, calls: list[ModuleCall]) -> list[Any] | None:
    """The output of each call, made by one; None where the outputs cannot be told apart."""
    flat = [tree_flatten((call.args, call.kwargs)) for call in calls]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].ndim else column[0] for column in columns
    ]
    args, kwargs = tree_unflatten(joined, flat[0][1])
    with attention_through(None, vlm.mask_configs):
        leaves, form = tree_flatten(calls[0].module(*args, **kwargs))
    if any(isinstance(leaf, Tensor) and (not leaf.ndim or len(leaf) % len(calls)) for leaf in leaves):
        return None
    parts = [leaf.chunk(len(calls)) if isinstance(leaf, Tensor) else [leaf] * len(calls) for leaf in leaves]
    return [tree_unflatten(list(own), form) for own in zip(*parts, strict=True)]


@torch.no_grad()
def _agrees(vlm: VLM, calls: list[ModuleCall]) -> bool | None:
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
