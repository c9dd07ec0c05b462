"""`import mmbdhs` is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmbdhs


def test_import_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, mmbdhs; print([m for m in ('transformers', 'sentence_transformers', 'PIL') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_every_public_name_resolves() -> None:
    assert all(getattr(mmbdhs, name) is not None for name in mmbdhs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmbdhs.nothing  # noqa: B018
