"""The house: imports run downwards, and a file outside a wing imports from the wing's face."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mmbdhs"
FLOORS = (
    {"errors", "checks", "data", "native"},
    {"vlm", "losses", "doctor"},
    {"decoding", "logprobs", "runs"},
    {"sampling"},
    {"evaluation"},
    {"training", "pairs"},
    {"trl"},
    {"miniature"},
    {"cli", "__init__"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _imports() -> list[tuple[str, list[str], Path]]:
    """(room, parts of the imported module, file) for every import of the package by itself."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmbdhs":
                parts = node.module.split(".")[1:]
                found += [(room, parts or [alias.name], file) for alias in node.names]
    return found


def test_every_file_is_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == set(
        FLOOR
    )


def test_imports_run_downwards() -> None:
    ground = ("errors", "checks")
    wrong = [
        (str(file.relative_to(PACKAGE)), ".".join(parts))
        for room, parts, file in _imports()
        if parts[0] != room and (FLOOR[parts[0]] >= FLOOR[room]) and not (room in FLOORS[0] and parts[0] in ground)
    ]
    assert wrong == []


def test_wings_are_entered_by_their_face() -> None:
    wrong = [
        (str(file.relative_to(PACKAGE)), ".".join(parts))
        for room, parts, file in _imports()
        if parts[0] != room and len(parts) > 1
    ]
    assert wrong == []
