"""What `make gpu-check` does around its stages, which need a device themselves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import decode_step
import gpu_check
import llava
import pytest
import torch
from gpu_check import Stage
from helpers.fake_cuda import FakeCuda


def test_a_stage_keeps_its_limit_and_what_the_library_said() -> None:
    said = "print('mmbdhs: native', 'mmbdhs: sdpa', 'other', 'mmbdhs: native', sep=chr(10))"
    record = gpu_check.timed([sys.executable, "-c", said], 60, dict(os.environ))
    assert record["outcome"] == "passed" and record["said"] == ["mmbdhs: native", "mmbdhs: sdpa"]
    assert "output" not in record
    waits = "print('begun', flush=True); import threading; threading.Event().wait()"
    record = gpu_check.timed([sys.executable, "-c", waits], 2, dict(os.environ))
    assert record["outcome"] == "timed out after 2 s" and record["output"] == "begun\n"
    record = gpu_check.timed([sys.executable, "-c", "raise SystemExit('no kernel image')"], 60, dict(os.environ))
    assert record["outcome"] == "failed" and "no kernel image" in record["output"]


def test_stages_share_one_time_and_every_record_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def stage(seconds: float, outcome: str) -> Stage:
        def run(environment: dict[str, str], limit: float) -> dict[str, Any]:
            clock[0] += min(seconds, limit)
            return {"outcome": outcome, "limit": limit}

        return Stage(run, 400)

    stages = {"first": stage(300, "passed"), "second": stage(265, "failed"), "third": stage(1, "passed")}
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: clock[0])
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    report: dict[str, Any] = {"stages": {}}
    path = tmp_path / "gpu-device.json"
    gpu_check.run_stages(list(stages), {}, report["stages"], lambda: gpu_check.save(report, path))
    assert report["stages"]["first"]["limit"] == 400 and report["stages"]["second"]["limit"] == 270
    assert report["stages"]["third"]["outcome"].startswith("not run: no time left")
    assert json.loads(path.read_text()) == json.loads((out / path.name).read_text()) == report
    assert "gpu-check: second: failed" in capsys.readouterr().out


def test_the_limits_of_what_comes_first_fit_into_one_call() -> None:
    limits = [stage.limit for stage in gpu_check.STAGES.values()]
    assert list(gpu_check.STAGES)[:5] == ["build", "check", "tests", "decode_step", "sampling"]
    assert sum(limits[:5]) <= gpu_check.SECONDS


@torch.no_grad()
def test_a_step_is_measured_eagerly_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(decode_step, "_profile", lambda step: {"kernels": 1, "profile": []})
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    model = llava.model(llava.Size(2, 128, head_dim=32), vocabulary=300, image_token=299, device=torch.device("cpu"))
    row = decode_step.measure(model, decode_step.Case("small", prompts=2, branches=3, keys=20), on_gpu=True)
    assert row["branches"] == 6 and row["replay"] > 0
    assert len(cuda.captures) == 1 and cuda.replays == decode_step.STEPS - 8
