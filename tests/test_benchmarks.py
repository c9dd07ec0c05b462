"""The benchmarks run, and their sides choose the same tokens (asserted inside)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_sampling_benchmark_runs() -> None:
    command = [sys.executable, "benchmarks/run.py", "sampling", "--quick"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    row = json.loads(shown.splitlines()[-1])
    assert row["benchmark"] == "sampling" and row["image_tokens"] == 2928
    assert set(row["stages_ms_per_pair"]) >= {"vision", "prefill", "decode"}
