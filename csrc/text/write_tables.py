"""Write the C++ header of the sentence rule's tables.

python write_tables.py mmbdhs/native/sentence_tables.py HEADER
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = ("NEVER_FINAL", "OFTEN_FINAL", "NUMBERED")


def main(source: str, header: str) -> None:
    Path(header).parent.mkdir(parents=True, exist_ok=True)
    Path(header).write_text(header_of(runpy.run_path(source)), encoding="utf-8")


def header_of(tables: dict[str, Any]) -> str:
    kinds = list(tables["KINDS"].values())
    begins = range_begins(kinds)
    brackets = [f"{{{ord(opening)}, {ord(closing)}}}" for opening, closing in tables["TAG_BRACKETS"].items()]
    answers = [f"{{{quoted(word)}, {quoted(other)}}}" for word, other in tables["COUNTERPARTS"].items()]
    lines = [
        "// Written by csrc/text/write_tables.py from mmbdhs/native/sentence_tables.py, which describes the tables.",
        "#pragma once",
        "#include <cstdint>",
        "#include <string_view>",
        "namespace mmbdhs {",
        f"enum Kind : uint32_t {{ {', '.join(f'{name} = 1u << {bit}' for bit, name in enumerate(tables['KINDS']))} }};",
        "// The kinds of the characters below U+0080, and of those from each range's begin to the next one's.",
        array("uint32_t ASCII_KINDS", (bits(code, kinds) for code in range(0x80))),
        array("uint32_t RANGE_BEGINS", begins),
        array("uint32_t RANGE_KINDS", (bits(code, kinds) for code in begins)),
        "struct Brackets { uint32_t open, close; };",
        array("Brackets TAG_BRACKETS", brackets),
        f"constexpr int64_t TAG_BYTES = {tables['TAG_BYTES']};",
        array("std::string_view WHOLE_TAGS", map(quoted, tables["WHOLE_TAGS"])),
        "// Sorted, for a binary search.",
        *(array(f"std::string_view {name}", map(quoted, sorted(tables[name]))) for name in WORDS),
        "struct Counterpart { std::string_view word, other; };",
        array("Counterpart COUNTERPARTS", answers),
        "}  // namespace mmbdhs",
    ]
    return "\n".join(lines) + "\n"


def array(declaration: str, items: Iterable[object]) -> str:
    return f"constexpr {declaration}[] = {{{', '.join(map(str, items))}}};"


def quoted(word: str | bytes) -> str:
    return json.dumps(word if isinstance(word, str) else word.decode())


def range_begins(kinds: list[frozenset[int]]) -> list[int]:
    """Where the kinds of characters change, from U+0080 on."""
    changes = {
        code for kind in kinds for code in kind | {last + 1 for last in kind} if (code in kind) != (code - 1 in kind)
    }
    return [0x80, *sorted(code for code in changes if code > 0x80)]


def bits(code: int, kinds: list[frozenset[int]]) -> int:
    return sum(1 << bit for bit, kind in enumerate(kinds) if code in kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
