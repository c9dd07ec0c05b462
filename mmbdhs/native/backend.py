"""The backend that runs the ops: chosen once, announced once, overridden by MMBDHS_BACKEND."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from dataclasses import dataclass
from types import ModuleType

import torch

_LOG = logging.getLogger("mmbdhs")
_VARIABLE = "MMBDHS_BACKEND"
_MODULES = {"native": "mmbdhs.native.binding", "reference": "mmbdhs.native.reference"}


@dataclass(frozen=True)
class Backend:
    """The backend in use: `name` is "native" or "reference", `reason` says in words why it was chosen."""

    name: str
    reason: str

    @functools.cached_property
    def ops(self) -> ModuleType:
        """The module with the functions that run the ops; `binding` and `reference` have the same ones."""
        return importlib.import_module(_MODULES[self.name])


@functools.cache
def extension() -> tuple[ModuleType | None, str]:
    """Import the compiled module. Returns it, or None, with a sentence that says why."""
    try:
        return importlib.import_module("mmbdhs.native._extension"), "the compiled extension was found"
    except ImportError as error:
        return None, f"the compiled extension cannot be imported ({error})"


@functools.cache
def kernel_obstacle(device: torch.device) -> str:
    """Why a compiled extension has no kernels for a device; empty if it has."""
    if device.type == "cpu":
        return ""
    binary, reason = extension()
    if binary is None:
        return reason
    if device.type != "cuda":
        return f"the extension was built without {device.type}"
    if not hasattr(binary, "masked_attention_cuda"):
        return "the extension was built without CUDA"
    capability, archs = torch.cuda.get_device_capability(device), binary.build_info()["cuda_archs"].split()
    if not runs_on(capability, archs):
        return f"the extension was built for sm_{', sm_'.join(archs)}, {device} is sm_{'{}{}'.format(*capability)}"
    return ""


def runs_on(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether a device runs kernels built for `archs`, such as "80" and "90": machine code runs on later minor versions
    of the same major one, and the last one's PTX on everything later."""
    built = [divmod(int(arch.rstrip("af")), 10) for arch in archs]
    return capability >= built[-1] or any(major == capability[0] and minor <= capability[1] for major, minor in built)


@functools.cache
def live() -> Backend:
    """Choose the backend.

    Raises ValueError for an unknown override, and ImportError if the override asks for a binary that is missing.
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", *_MODULES):
        raise ValueError(f"{_VARIABLE}: needs 'native' or 'reference', got {wanted!r}")
    binary, reason = (None, "not looked for") if wanted == "reference" else extension()
    if wanted == "native" and binary is None:
        raise ImportError(f"{_VARIABLE}=native, but {reason}")
    if wanted:
        reason = f"{_VARIABLE}={wanted}"
    chosen = Backend("native" if binary else "reference", reason)
    level = logging.INFO if wanted or binary else logging.WARNING
    _LOG.log(level, "native ops run on the %s path: %s", chosen.name, chosen.reason)
    return chosen
