"""Tools that a test needs and a machine may lack."""

import os
from typing import NoReturn

import pytest

NAMES = ("nvcc", "aarch64")


def lacking(name: str, needed: str) -> NoReturn:
    """Skip the running test, or fail it if MMBDHS_REQUIRE, names of tools with spaces between them, has this one."""
    required = os.environ.get("MMBDHS_REQUIRE", "").split()
    assert set(required) <= set(NAMES), f"MMBDHS_REQUIRE must name tools of {NAMES}, got {required}"
    (pytest.fail if name in required else pytest.skip)(f"needs {needed}")
