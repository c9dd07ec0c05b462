"""Hold README and docs/ to the tree: their code runs, and every file, command and name that they mention exists."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path

import pytest
import rewards
from alignment_page import PAGES as PAGES_WITH_TABLES
from alignment_page import page_tables
from helpers.plain import picture
from run import BENCHMARKS

from mmbdhs import miniature
from mmbdhs.miniature.demo import minilm

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "results" / "README.md"]
FILE_TYPES = ("cff", "cpp", "cu", "cuh", "h", "md", "py", "toml", "txt")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _inline_code(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", prose)


@functools.cache
def _sources() -> str:
    files = [file for folder in ("mmbdhs", "benchmarks", "csrc", "tests") for file in (ROOT / folder).rglob("*.*")]
    code = [file for file in files if file.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and file != Path(__file__)]
    return "\n".join([file.read_text(encoding="utf-8") for file in code] + [(ROOT / "CMakeLists.txt").read_text()])


@pytest.mark.parametrize("page", [page for page in GUIDES if _python_blocks(page)], ids=_name)
def test_the_code_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Run a page's blocks one after another, the miniature and MiniLM in place of models that need a download."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmbdhs.sampling.similarity._load", lambda name: minilm())
    picture(0).save("street.jpg")
    scope: dict[str, object] = {}
    for number, code in enumerate(_python_blocks(page), 1):
        code = code.replace("llava-hf/llava-v1.6-vicuna-7b-hf", str(miniature.path()))
        exec(compile(code, f"{_name(page)}, python block {number}", "exec"), scope)
        assert "print(" not in code or capsys.readouterr().out.strip()


def test_the_readme_fits_on_a_page_and_its_first_example_in_ten_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
    first = _python_blocks(ROOT / "README.md")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_exists(page: Path) -> None:
    paths = [code for code in _inline_code(page) if re.fullmatch(rf"[\w./-]+(/|\.({'|'.join(FILE_TYPES)}))", code)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_file_in_a_command_or_flow_chart_exists() -> None:
    named = {path for page in PAGES for path in re.findall(r"\b[\w/]+/\w+\.py\b", page.read_text(encoding="utf-8"))}
    assert {path for path in named if not (ROOT / path).exists() and not (ROOT / "mmbdhs" / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"[`$] ?make ([\w-]+)", text)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    assert set(re.findall(r"benchmarks/run\.py ([a-z_]+)", text)) <= set(BENCHMARKS)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_name_exists(page: Path) -> None:
    """Import dotted names of the library; find single names of snake_case or CamelCase in the sources."""
    code = _inline_code(page)
    for name in re.findall(r"\bmmbdhs(?:\.[A-Za-z_]\w*)+", "\n".join(code)):
        assert _resolves(name), name
    plain = re.compile(r"\w*([a-z0-9]_[a-z0-9]|[a-z][A-Z]|[A-Z]{2})\w*")
    words = {name for name in code if plain.fullmatch(name) and name.isidentifier()}
    assert [word for word in sorted(words) if not re.search(rf"\b{word}\b", _sources())] == []


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), attribute)
    return True


def test_the_alignment_page_shows_the_stored_rows() -> None:
    stored = [
        [json.loads(line) for line in (ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8").splitlines()]
        for name in ("alignment.jsonl", "alignment_differences.jsonl", "reward_models.jsonl", "rewards.jsonl")
    ]
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES_WITH_TABLES)
    shown = dict(re.findall(r"<!-- (.+?) -->\n(.*?)<!-- / -->", text, re.DOTALL))
    assert shown == page_tables(*stored[:2]) | rewards.page_tables(*stored[2:])
