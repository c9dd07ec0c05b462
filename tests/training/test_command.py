"""The train command, alone and in two processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.preference_records import apart, scene_records
from safetensors.torch import load_file

from mmbdhs import miniature
from mmbdhs.cli import main
from mmbdhs.data.jsonl import write_jsonl
from mmbdhs.losses import ipo_loss
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.training.command import _objective, _source
from mmbdhs.training.pair_sources import Distorted, OnlineBDHS

pytest.importorskip("accelerate")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command for 9 pairs, whose image paths are relative to their file; the last step has one example alone."""
    records = scene_records(9)
    (tmp_path / "images").mkdir()
    for record in records:
        record["images"][0].save(tmp_path / f"images/{record['key']}.png")
        record["images"] = [f"images/{record['key']}.png"]
    write_jsonl(tmp_path / "pairs.jsonl", records)
    config = {"learning_rate": 1.0, "batch_size": 4, "micro_batch_size": 2, "log_steps": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = {"--model": miniature.path(), "--data": tmp_path / "pairs.jsonl", "--config": tmp_path / "config.json"}
    words = [str(word) for option in given.items() for word in option]
    return ["train", *words, "--loss", "ipo", "beta=0.5", "per_token=true", "--learning-rate", "1e-3"]


def test_two_processes_train_as_one_does(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *settings.split(), "-m", "mmbdhs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *arguments, "--output", str(tmp_path / "two")], check=True, env=environment)
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    start = load_file(miniature.path() / "model.safetensors")
    assert apart(two, one, start) < 1e-3
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    of_one, of_two = ([json.loads(line) for line in of] for of in lines)
    assert [row["step"] for row in of_two] == [1, 2, 3]
    for name in ("loss", "margin", "grad_norm"):
        assert [row[name] for row in of_two] == pytest.approx([row[name] for row in of_one], rel=1e-4)


class Stop(logging.Handler):
    """Sends the signal that a scheduler would, as soon as the run has begun."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("writing log.jsonl"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_the_command_with_its_status(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger, stop = logging.getLogger("mmbdhs"), Stop()
    caplog.set_level(logging.INFO, "mmbdhs")
    logger.addHandler(stop)
    try:
        assert main([*arguments, "--output", str(tmp_path / "cut")]) == 143
    finally:
        logger.removeHandler(stop)
    assert (tmp_path / "cut/checkpoint-000001").is_dir() and not (tmp_path / "cut/final").exists()
    assert main([*arguments, "--output", str(tmp_path / "cut"), "--resume", "true"]) == 0
    assert (tmp_path / "cut/final").is_dir()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--output", "x", "--loss", "dop"], "loss: 'dop' is unknown; is it 'dpo'?"),
        (["--output", "x", "--loss", "dpo", "beta"], "settings: need KEY=VALUE, got 'beta'"),
        (["--output", "x", "--source", "bhds"], "source: 'bhds' is unknown; is it 'bdhs'?"),
        (["--output", "x", "--source", "bdhs", "mask_treshold=1"], "mask_treshold"),
        (["--output", "x", "--epochs", "many"], "epochs: needs an integer of at least 1, got 'many'"),
        ([], "output: needs a folder, got none"),
    ],
)
def test_arguments_that_do_not_fit_end_with_a_line(
    more: list[str], message: str, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main([*arguments, *more]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mmbdhs train: ") and message in shown and shown.count("\n") == 1


def test_words_become_sources_and_objectives() -> None:
    words = ["bdhs", "mask_threshold=0.9", "with_stored=true", "similarity=some/model"]
    assert _source(words, "skip") == OnlineBDHS(BDHSConfig(mask_threshold=0.9), "some/model", True, "skip")
    assert _source(["povid", "noise_steps=300"], "raise") == Distorted(300)
    objective = _objective(["ipo", "beta=0.5", "per_token=true"])
    assert (objective.loss, objective.settings) == (ipo_loss, {"beta": 0.5})
