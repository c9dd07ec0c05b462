"""Which path runs the attention of packed rows: measured on the first call of its kind, announced once.

The environment variable MMBDHS_PACKED_ATTENTION=flex|sdpa overrides the measurement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmbdhs.vlm import LayerCall, LayerShape, MaskRule, fastest_path, least_seconds, path_override

_LOG = logging.getLogger("mmbdhs")
_VARIABLE = "MMBDHS_PACKED_ATTENTION"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TOLERANCE = 0.02  # of a tensor's norm: more than rounding to bfloat16 makes, less than a wrong mask
# Errors of torch.compile and of the kernels are among these. The exception by which a checkpoint ends is not.
_FAILURES = (RuntimeError, ValueError)

Path = Callable[[LayerCall], Tensor]


@dataclass(frozen=True)
class _Kind:
    """Calls that run on one path.

    learns: whether gradients may be needed.
    capped: whether scores have a soft-cap.
    windowed: whether the queries are a part of the rows.
    """

    shape: LayerShape
    learns: bool
    capped: bool
    windowed: bool

    def __str__(self) -> str:
        notes = {"with gradients": self.learns, "soft-cap": self.capped, "last layer": self.windowed}
        return ", ".join([str(self.shape), *(note for note, holds in notes.items() if holds)])


_CHOSEN: dict[tuple[_Kind, str | None], str] = {}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(call: LayerCall, rule: MaskRule, windowed: bool, paths: Mapping[str, Path]) -> Tensor:
    """Run a layer's call on the path that the override asks for, or else on the fastest one.

    rule: what the layer's mask says.
    windowed: whether the queries are a part of the rows.
    paths: "flex" and "sdpa".

    Raises ValueError if the override asks for FlexAttention where it cannot run. Where FlexAttention fails without an
    override, SDPA takes over for calls of the kind.
    """
    kind, wanted = _kind(call, rule, windowed), path_override(_VARIABLE, paths)
    if (kind, wanted) not in _CHOSEN:
        _choose(kind, wanted, *_decide(kind, wanted, call, paths))
    if _CHOSEN[kind, wanted] == "flex" and not wanted:
        try:
            return paths["flex"](call)
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:  # lengths that were not compiled before
            _choose(kind, wanted, "sdpa", _failure(error))
    return paths[_CHOSEN[kind, wanted]](call)


def _kind(call: LayerCall, rule: MaskRule, windowed: bool) -> _Kind:
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.key, call.value))
    # One path for policy and reference on a GPU, so that both round alike. Inference mode can take no gradients.
    learns |= call.query.device.type == "cuda" and not torch.is_inference_mode_enabled()
    return _Kind(LayerShape.of(call, rule), learns, bool(call.softcap), windowed)


def _choose(kind: _Kind, wanted: str | None, name: str, reason: str) -> None:
    _CHOSEN[kind, wanted] = name
    _LOG.info("attention of packed responses runs on the %s path (%s): %s", name, kind, reason)


def _decide(kind: _Kind, wanted: str | None, call: LayerCall, paths: Mapping[str, Path]) -> tuple[str, str]:
    obstacle = _obstacle(kind)
    if wanted == "flex" and obstacle:
        raise ValueError(f"{_VARIABLE} must be 'sdpa' here, got 'flex': {obstacle}")
    if wanted:
        return wanted, f"{_VARIABLE}={wanted}"
    if obstacle or kind.shape.device.type == "cpu":
        return "sdpa", obstacle or "the default on a CPU"
    _LOG.info("FlexAttention is compiled, to be compared with SDPA (%s)", kind)
    trials = {name: partial(_trial, path, call, kind.learns) for name, path in paths.items()}
    try:
        found = trials["flex"]()
        seconds = least_seconds(trials, kind.shape.device)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        return "sdpa", _failure(error)
    if not _agree(found, trials["sdpa"]()):
        return "sdpa", "FlexAttention computed something else"
    return fastest_path(seconds)


def _obstacle(kind: _Kind) -> str:
    """The reason why FlexAttention cannot take such calls; empty if it can."""
    device = kind.shape.device
    if device.type not in ("cpu", "cuda"):
        return f"FlexAttention is not used on {device.type}"
    if device.type == "cpu" and kind.learns:
        return "FlexAttention computes no gradients on a CPU"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "FlexAttention needs compute capability 8.0"
    if not set(kind.shape.dtypes) <= set(_DTYPES):
        return f"FlexAttention needs float32, bfloat16 or float16, got {kind.shape.dtypes[0]}"
    return ""


def _trial(path: Path, call: LayerCall, learns: bool) -> list[Tensor]:
    """What a path computes, with gradients if it is to learn, without a trace in the caller's graph."""
    operands = [x.detach().requires_grad_(learns) for x in (call.query, call.key, call.value)]
    query, key, value = operands
    # A checkpoint around the layer would count what is saved here.
    with torch.set_grad_enabled(learns), saved_tensors_hooks(lambda x: x, lambda x: x):
        out = path(call._replace(query=query, key=key, value=value))
        return [out.detach(), *(torch.autograd.grad(out, operands, torch.ones_like(out)) if learns else ())]


def _agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = [(x.float(), y.float()) for x, y in zip(found, expected, strict=True)]
    return all(bool((x - y).norm() <= _TOLERANCE * y.norm()) for x, y in pairs)


def _failure(error: RuntimeError | ValueError) -> str:
    return f"FlexAttention failed with {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
