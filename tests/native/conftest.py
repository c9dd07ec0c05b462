import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["binding", "reference"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Both implementations of the ops; a test that asks for it fails where the binary is missing."""
    from importlib import import_module

    return import_module(f"mmbdhs.native.{request.param}")
