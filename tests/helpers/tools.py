"""What to do if a machine lacks a tool that a test needs."""

import os
from typing import NoReturn

import pytest

NAMES = ("nvcc", "aarch64")


def lacking(name: str, needed: str) -> NoReturn:
    """Skip the running test, or fail it if the space-separated list MMBDHS_REQUIRE has this tool."""
    required = os.environ.get("MMBDHS_REQUIRE", "").split()
    assert set(required) <= set(NAMES), f"MMBDHS_REQUIRE must name tools of {NAMES}, got {required}"
    (pytest.fail if name in required else pytest.skip)(f"needs {needed}")
