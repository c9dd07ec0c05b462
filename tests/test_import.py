"""`import mmbdhs` is light, and shows its public names to people, editors and type checkers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmbdhs

WINGS = [module.name for module in pkgutil.iter_modules(mmbdhs.__path__) if module.ispkg]


def test_import_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, mmbdhs; print([m for m in ('torch', 'transformers', 'sentence_transformers', 'PIL')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_every_public_name_resolves_and_shows() -> None:
    assert set(mmbdhs.__all__) <= set(dir(mmbdhs))
    shown = pydoc.plain(pydoc.render_doc(mmbdhs))
    for name in mmbdhs.__all__:
        assert getattr(mmbdhs, name) is not None and name in shown
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmbdhs.nothing  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(mmbdhs.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: f"{node.module}.{alias.name}" for node in block.body for alias in node.names}
    assert seen == {name: f"mmbdhs.{wing}.{name}" for wing, names in mmbdhs._WINGS.items() for name in names}
    assert (Path(mmbdhs.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_names_its_files_and_what_it_offers(wing: str) -> None:
    module = importlib.import_module(f"mmbdhs.{wing}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    files = {file.name for file in pkgutil.iter_modules(module.__path__) if not file.name.startswith("_")}
    named = {part for name in re.findall(r"`([^`]*)`", module.__doc__) for part in name.split(".")}
    assert files - named == set() and module.__doc__.count("\n") < 16
