"""Registration of the ops with `torch.library`, as `mmbdhs::…`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

LIBRARY = torch.library.Library("mmbdhs", "DEF")

P = ParamSpec("P")
R = TypeVar("R")


def register(fake: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make the decorated function an op of the same name, with a schema inferred from its annotations.

    fake: gives empty results of the right shapes and dtypes, for tracing.
    Returns a decorator. The decorated function then goes through the dispatcher, with the same signature as before.
    """

    def decorate(run: Callable[P, R]) -> Callable[P, R]:
        name = f"mmbdhs::{run.__name__}"
        LIBRARY.define(run.__name__ + torch.library.infer_schema(run, mutates_args=()))
        # One implementation serves every device: the checks, not the dispatcher, name a tensor in the wrong place.
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(name, fake, lib=LIBRARY)
        op = getattr(torch.ops.mmbdhs, run.__name__).default

        @functools.wraps(run)
        def call(*args: P.args, **named: P.kwargs) -> R:
            return op(*args, **named)

        return call

    return decorate
