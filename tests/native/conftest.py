from importlib import import_module
from types import ModuleType

import pytest


@pytest.fixture(params=["binding", "reference"])
def implementation(request: pytest.FixtureRequest) -> ModuleType:
    """The ops of either backend; a test that asks for it fails if the binary is missing."""
    return import_module(f"mmbdhs.native.{request.param}")
