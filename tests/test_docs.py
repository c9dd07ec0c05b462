"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.plain import picture

from mmbdhs import miniature

README = (Path(__file__).parent.parent / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """As it stands, with the miniature and MiniLM in place of models that would have to be downloaded."""
    from mmbdhs.miniature.demo import minilm

    code = BLOCKS[0]
    assert len(code.strip().splitlines()) <= 11
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmbdhs.sampling.similarity._load", lambda name: minilm())
    picture(0).save("street.jpg")
    changed = code.replace("llava-hf/llava-v1.6-vicuna-7b-hf", str(miniature.path()))
    exec(changed, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("code", BLOCKS[1:])
def test_other_code_runs(code: str) -> None:
    exec(code, {})


def test_every_file_and_command_it_names_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / name).exists(), name
    for name in re.findall(r"^  (\w+\.py)", README, re.MULTILINE):
        assert (root / "mmbdhs" / name).exists(), name
    for target in re.findall(r"[`$] ?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.MULTILINE), target
