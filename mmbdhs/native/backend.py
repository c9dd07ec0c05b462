"""Which code runs the native ops, and why: decided once, announced once, overridden by MMBDHS_BACKEND."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from dataclasses import dataclass
from types import ModuleType

_LOG = logging.getLogger("mmbdhs")
_VARIABLE = "MMBDHS_BACKEND"
_TWINS = {"native": "mmbdhs.native.binding", "reference": "mmbdhs.native.reference"}


@dataclass(frozen=True)
class Backend:
    """The live path: `name` is "native" or "reference", `reason` says in words why."""

    name: str
    reason: str

    @functools.cached_property
    def twin(self) -> ModuleType:
        """The module that runs the ops; both have the functions of `mmbdhs.native.reference`."""
        return importlib.import_module(_TWINS[self.name])


@functools.cache
def extension() -> tuple[ModuleType | None, str]:
    """The compiled module, or None with the reason for its absence."""
    try:
        return importlib.import_module("mmbdhs.native._extension"), "the compiled extension was found"
    except ImportError as error:
        return None, f"the compiled extension cannot be imported ({error})"


@functools.cache
def live() -> Backend:
    """Decide the path. Raises ValueError for an unknown override, ImportError for native without its
    binary."""
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", *_TWINS):
        raise ValueError(f"{_VARIABLE} must be 'native' or 'reference', got {wanted!r}")
    binary, reason = (None, "not looked for") if wanted == "reference" else extension()
    if wanted == "native" and binary is None:
        raise ImportError(f"{_VARIABLE}=native, but {reason}")
    if wanted:
        reason = f"{_VARIABLE}={wanted}"
    chosen = Backend("native" if binary else "reference", reason)
    fallback = not (wanted or binary)
    _LOG.log(
        logging.WARNING if fallback else logging.INFO, "native ops run on the %s path: %s", chosen.name, chosen.reason
    )
    return chosen
