"""Registration of the ops with `torch.library`, as `mmbdhs::…`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("mmbdhs", "DEF")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Define an op: `run` checks its arguments and computes, `fake` gives shapes and dtypes for tracing. Returns its
    qualified name."""
    name = f"mmbdhs::{LIBRARY.define(schema)}"
    # One implementation for every device: a tensor in the wrong place is named by the checks, not by the dispatcher.
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    return name
