"""What a report about an installation should quote: the live backend, versions, compilers."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from types import ModuleType

from mmbdhs.native import backend

_REMEDY = (
    "Install a wheel for Linux, which brings kernels for sm_80 and newer, or build them where nvcc is installed: "
    "MMBDHS_CUDA=on pip install --no-binary mmbdhs --force-reinstall --no-deps mmbdhs"
)


def report() -> dict[str, str]:
    """What an issue about an installation should quote: live path, versions, compilers. Never raises for a
    lack."""
    binary, reason = backend.extension()
    try:
        chosen = backend.live()
        path = f"{chosen.name} ({chosen.reason})"
    except (ImportError, ValueError) as error:
        path = f"none ({error})"
    facts = {"backend": path, "extension": str(binary.__file__) if binary else reason}
    if binary:
        build = binary.build_info()
        facts |= {
            "compiler": build["compiler"],
            "cuda build": build["cuda"],
            "cuda archs": build["cuda_archs"],
            "instruction set": _instruction_set(binary),
        }
    overrides = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MMBDHS_"))
    facts["overrides"] = ", ".join(overrides) or "none"
    facts |= {
        name: installed_version(name) or "not installed"
        for name in ("mmbdhs", "torch", "transformers", "sentence-transformers", "numpy")
    }
    return facts | _torch_cuda() | {"python": sys.version.split()[0], "platform": platform.platform()}


def _instruction_set(binary: ModuleType) -> str:
    try:
        return binary.instruction_set()
    except ValueError as error:
        return f"none ({error})"


def installed_version(distribution: str) -> str | None:
    """The version of a distribution; None for one that is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> dict[str, str]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return {"torch cuda": f"torch cannot be imported ({error})"}
    built = torch.version.cuda or "CPU build"
    if not torch.cuda.is_available():
        return {"torch cuda": f"{built}, no device"}
    obstacle = backend.kernel_obstacle(torch.device("cuda", torch.cuda.current_device()))
    kernels = f"none: {obstacle}. PyTorch's SDPA takes their place. {_REMEDY}" if obstacle else "for this device"
    return {"torch cuda": f"{built}, {torch.cuda.get_device_name()}", "cuda kernels": kernels}
