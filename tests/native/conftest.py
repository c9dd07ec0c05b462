from importlib import import_module
from types import ModuleType

import pytest


@pytest.fixture(params=["binding", "reference"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Both implementations of the ops; a test that asks for it fails where the binary is missing."""
    return import_module(f"mmbdhs.native.{request.param}")
