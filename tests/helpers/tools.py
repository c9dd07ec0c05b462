"""What to do if a machine lacks a tool that a test needs."""

import os
import shutil
import site
from pathlib import Path
from typing import NoReturn

import pytest

NAMES = ("nvcc", "nvdisasm", "aarch64", "sanitizers", "chromium")


def lacking(name: str, needed: str) -> NoReturn:
    """Skip the running test, or fail it if the space-separated list MMBDHS_REQUIRE has this tool."""
    required = os.environ.get("MMBDHS_REQUIRE", "").split()
    assert set(required) <= set(NAMES), f"MMBDHS_REQUIRE must name tools of {NAMES}, got {required}"
    (pytest.fail if name in required else pytest.skip)(f"needs {needed}")


def cuda_tool(name: str) -> str:
    """A program of the CUDA toolkit: from PATH, from its usual folder, or from a package of PyPI."""
    packages = (path for folder in site.getsitepackages() for path in Path(folder).glob(f"nvidia/*/bin/{name}"))
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}") or next(packages, None)
    return str(found or lacking(name, name))
