"""The benchmarks run, and their contestants agree (asserted inside)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXPECTED = {
    "attention": {
        "ours",
        "ours_steps",
        "ours_index",
        "packed",
        "two_level",
        "two_flash",
        "compacted",
        "dense",
        "share",
    },
    "prefill": {"work", "ours", "dense", "dense_over_ours"},
    "mask": {"ours", "numpy", "torch_rand"},
    "splice": {"work", "ours", "python"},
    "decode": {"ours", "compact", "dynamic", "static", "share", "equal"},
    "sampling": {"ours", "shared", "batched", "stages_ms_per_pair", "peak_mib"},
    "dataset": {"pairs", "shard_size"},
    "scale": {"work", "of"},
    "evaluate": {"ours", "cached", "generate", "over_cached", "over_generate", "equal"},
    "logps": {"full", "chunks", "ours", "full_over_ours", "full_mib", "ours_mib"},
    "alignment": {"method", "bias", "images", "bases", "sampled wrong", "adversarial accuracy", "minutes"},
    "rewards": {"method", "sampled wrong", "sampled recall", "adversarial accuracy", "minutes", "seeds"},
    "report_page": {"pairs", "seconds", "MiB"},
    "rollout": {"ours", "repeated", "generate", "over_repeated", "over_generate", "difference"},
    "preference_step": {"ours", "stored", "plain", "over_plain", "memory", "difference"},
}


@pytest.fixture(scope="module")
def quick_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The rows of all benchmarks, which one process runs one after another."""
    file = tmp_path_factory.mktemp("quick") / "rows.jsonl"
    command = [sys.executable, "benchmarks/run.py", *EXPECTED, "--quick", "--device", "cpu", "--rows", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*EXPECTED, "reward_models")}
    for row in map(json.loads, file.read_text().splitlines()):
        assert f"\n{row['benchmark']}: " in done.stdout
        found[row["benchmark"]].append(row)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_benchmark_runs(name: str, quick_rows: dict[str, list[dict[str, Any]]]) -> None:
    rows = list(quick_rows[name])
    assert rows
    if name == "sampling":
        reading_ahead = rows.pop(0)
        assert reading_ahead.keys() >= {"readers", "wait_ms", "ours", "in_between", "alone", "of_alone", "threads"}
    if name == "preference_step":
        for row in (rows.pop(), rows.pop()):
            assert row["shape"].startswith("train, ") and row.keys() >= {"ours", "waiting", "over_waiting", "threads"}
    if name == "rewards":
        (of_model,) = quick_rows["reward_models"]
        assert of_model.keys() >= {"trained on", "rankings", "of_seeds"}
    for row in rows:
        assert row.keys() >= EXPECTED[name] | {"device", "versions", "threads", "date"}


def test_the_true_size_runs_in_small(tmp_path: Path) -> None:
    """The road of `--shape 7b` with a small model: the large vocabulary, the stages and the masked forward."""
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, "benchmarks/run.py", "sampling", "--shape", "7b", "--quick", "--rows", str(file)]
    subprocess.run(command, cwd=ROOT, check=True)
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["asked"] == "7b" and row["device"] and row["equal"] > 0.5 and row["largest_gap"] < 0.1
    assert {"read", "vision", "prefill", "decode", "similarity"} <= row["stages_s_per_pair"].keys()
    assert 0 < row["peak_gib"] <= row["peak_masked_gib"] and row["batched_s"] > row["masked_forward_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["speed"], "unknown benchmark 'speed'"), (["mask", "--shape", "7b"], "--shape: needs the benchmark 'sampling'")],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str) -> None:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and message in refused.stderr
