"""A run over a benchmark that is killed at any moment ends as one that was never disturbed, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

KILLS, SEED = 20, 0


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS and report["runs"] >= 2 and report["answers"] == 24
    assert report["differences"] == []


def main(folder: Path) -> None:
    """Kill runs over six scenes with four questions each and a judge, in blocks of three scenes."""
    import torch
    from helpers.evaluation_runs import scenes
    from helpers.kills import kill_runs
    from helpers.pair_runs import differing_files, loaded

    from mmbdhs.evaluation import judges, runner

    always = SimpleNamespace(date=SimpleNamespace(today=lambda: date(2026, 1, 1)))
    runner.datetime = judges.datetime = always
    benchmark = scenes(folder / "images", 6, judged=True)
    runner._BLOCK = 12
    loaded()

    def judge(requests: list) -> list[str]:
        return ["right" if "Yes" in request.text else "wrong" for request in requests]

    def run(out: Path) -> None:
        torch.set_num_threads(1)
        runner.evaluate(*loaded(), benchmark, output_dir=out, judge=judge, progress=False)

    report = kill_runs(folder, run, differing_files, KILLS, SEED)
    lines = (folder / "whole" / "scenes" / "answers.jsonl").read_bytes().splitlines()
    print(json.dumps(report | {"answers": len(lines)}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import mmbdhs.evaluation.runner  # noqa: F401

    main(Path(sys.argv[1]))
