"""The train command, alone and in two processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from helpers.preference_records import apart, scene_records
from pyarrow import parquet
from safetensors.torch import load_file

from mmbdhs import miniature
from mmbdhs.cli import main
from mmbdhs.data.jsonl import write_jsonl
from mmbdhs.losses import ipo_loss
from mmbdhs.sampling.config import BDHSConfig, SamplingConfig
from mmbdhs.training.command import parse_arguments
from mmbdhs.training.command_parts import (
    NamedAnnotator,
    parse_annotator,
    parse_method,
    parse_objective,
    parse_reward,
    parse_source,
)
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.pair_sources import (
    DistortedSource,
    MixedSource,
    OnlineBDHSSource,
    OnlinePairsSource,
    StoredSource,
)
from mmbdhs.training.reinforcement import ppo, rloo
from mmbdhs.training.reward_model import reward_modelling
from mmbdhs.training.rollouts import RolloutSource

pytest.importorskip("accelerate")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command for 9 pairs, whose image paths are relative to their file; the last step has one example."""
    records = scene_records(9)
    (tmp_path / "images").mkdir()
    for record in records:
        record["images"][0].save(tmp_path / f"images/{record['key']}.png")
        record["images"] = [f"images/{record['key']}.png"]
    write_jsonl(tmp_path / "pairs.jsonl", records)
    config = {
        "learning_rate": 1.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = {"--model": miniature.path(), "--data": tmp_path / "pairs.jsonl", "--config": tmp_path / "config.json"}
    words = [str(word) for option in given.items() for word in option]
    words += ["--lora-r", "0", "--num-train-epochs", "1"]
    return ["train", *words, "--loss", "ipo", "beta=0.5", "per_token=true", "--learning-rate", "1e-3"]


def test_two_processes_train_as_one_does(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *settings.split(), "-m", "mmbdhs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    half = ["--gradient_accumulation_steps", "1"]
    subprocess.run([*launcher, *arguments, *half, "--output", str(tmp_path / "two")], check=True, env=environment)
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    start = load_file(miniature.path() / "model.safetensors")
    assert apart(two, one, start) < 1e-3
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    of_one, of_two = ([json.loads(line) for line in of] for of in lines)
    assert [row["step"] for row in of_two] == [1, 2, 3]
    for name in ("loss", "rewards/margins", "grad_norm"):
        assert [row[name] for row in of_two] == pytest.approx([row[name] for row in of_one], rel=1e-4)


def test_lines_that_cannot_be_used_are_left_out_if_they_may_be(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with open(tmp_path / "pairs.jsonl", "a") as file:
        file.write('{"images": null, "prompt": "What?"}\n{\n')
    run = [*arguments, "--per_device_train_batch_size", "9", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(run)
    assert "records: row 10: needs one JSON object a line, line 11 is none" in capsys.readouterr().err
    assert main([*run, "--on-error", "skip"]) == 0
    (row,) = (json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines())
    assert (row["step"], row["skipped"]) == (1, 0)


def test_published_data_trains_as_the_same_pairs_in_json_lines(arguments: list[str], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows = [{"ds_name": "RLAIF-V", "key": line["key"], "question": line["prompt"]} for line in lines]
    for row, line in zip(rows, lines, strict=True):
        image = {"bytes": (tmp_path / line["images"][0]).read_bytes(), "path": "gone.png"}
        row |= {"image": image, "chosen": line["chosen"], "rejected": line["rejected"]}
    parquet.write_table(pyarrow.Table.from_pylist([*rows, rows[0] | {"image": None}]), tmp_path / "rlaif.parquet")
    files = [tmp_path / name / "final/model.safetensors" for name in ("lines", "rlaif")]
    for file, data in zip(files, ("pairs.jsonl", "rlaif.parquet"), strict=True):
        more = ["--data", str(tmp_path / data), "--max-steps", "2", "--output", str(file.parents[1])]
        assert main([*arguments, *more]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


class Stop(logging.Handler):
    """Sends the process a scheduler's SIGTERM as soon as the run has begun."""

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
    assert (tmp_path / "cut/checkpoint-1").is_dir() and not (tmp_path / "cut/final").exists()
    assert main([*arguments, "--output", str(tmp_path / "cut"), "--resume_from_checkpoint"]) == 0
    assert (tmp_path / "cut/final").is_dir()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--output", "x", "--loss", "dop"], "loss: 'dop' is unknown; is it 'dpo'?"),
        (["--output", "x", "--loss", "dpo", "beta"], "settings: need KEY=VALUE, got 'beta'"),
        (["--output", "x", "--source", "bhds"], "source: 'bhds' is unknown; is it 'bdhs'?"),
        (["--output", "x", "--source", "bdhs", "mask_treshold=1"], "mask_treshold"),
        (
            ["--output", "x", "--num_train_epochs", "many"],
            "num_train_epochs: needs an integer of at least 1, got 'many'",
        ),
        (["--output", "x", "--num_train_epochs", "None"], "num_train_epochs: needs an integer of at least 1, got None"),
        (["--output", "x", "--shard", "maybe"], "argument --shard: Truthy value expected: got maybe"),
        (["--output", "x", "--learning-rte", "1"], "option: 'learning_rte' is unknown; is it 'learning_rate'?"),
        (["--output", "x", "--config", "gone.json"], "--config: needs a YAML or JSON file, got gone.json"),
        (["--output", "x", "--conf"], "argument --config: expected one argument"),
        ([], "the following arguments are required: --output_dir"),
        (["--output", __file__], f"output_dir: needs a folder, {__file__} is a file"),
        (["--output", "x", "--data", "gone.jsonl"], "data: needs a file or folder that is there, got '"),
        (["--output", "x", "--data", __file__], "test_command.py: needs a file that ends in .json, .jsonl, "),
        (
            ["--output", "x", "--model", "/gone"],
            "model_name_or_path: needs a folder or name of model and processor, got '/gone'",
        ),
        (["--output", "x", "--dtype", "float31"], "dtype: needs auto or the name of a torch dtype, got 'float31'"),
        (["--output", "x", "--loss", "dpo", "beta=-1"], "beta: needs a finite number above 0, got -1"),
        (["--output", "x", "--source", "supervised"], "objective: needs two responses or more of each example"),
    ],
)
def test_arguments_that_do_not_fit_end_with_a_line(
    more: list[str], message: str, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, *more])
    shown = capsys.readouterr().err
    assert shown.startswith("mmbdhs train: ") and message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"learning_rat": 1}', "config: 'learning_rat' is unknown; is it 'learning_rate'?"),
        ("modle_name_or_path: x", "config: 'modle_name_or_path' is unknown; is it 'model_name_or_path'?"),
        ("gradient_accumulation_steps: 1.5", "gradient_accumulation_steps: needs an integer of at least 1, got 1.5"),
        ("[1]", "--config: needs options by their names, got [1]"),
        ("{", "--config: needs a YAML or JSON file"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        parsed("--config", str(tmp_path / "config.json"))


def test_a_run_that_fails_ends_with_a_line(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = Path(arguments[arguments.index("--data") + 1])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"rejected": "A <image>."}) + "\n" for row in rows))
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("mmbdhs train: records: example ") and "rejected: needs text, got the token" in shown


def test_a_folder_with_checkpoints_is_refused_before_the_model_is_loaded(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out/checkpoint-5").mkdir(parents=True)
    (tmp_path / "out/checkpoint-5/trainer.pt").touch()
    assert main([*arguments, "--model", "gone", "--output", str(tmp_path / "out")]) == 1
    assert (
        f"output_dir: needs a folder without a run, {tmp_path / 'out'} already contains checkpoint-5. "
        "Pass --resume_from_checkpoint to continue, or choose another --output_dir"
    ) in capsys.readouterr().err


def parsed(*words: str) -> TrainConfig:
    return parse_arguments(["--model", "m", "--data", "d", "--output", "x", *words])[1]


def test_options_have_the_types_of_their_fields() -> None:
    words = "--lora_r 64 --lora-alpha 3 --max-steps 7 --shard true --learning_rate 1e-3 --lr_scheduler_type linear "
    words += "--resume_from_checkpoint --report_to tensorboard wandb --run_name one"
    expected = TrainConfig(
        Path("x"),
        lora_r=64,
        lora_alpha=3,
        max_steps=7,
        shard=True,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        resume_from_checkpoint=True,
        report_to=["tensorboard", "wandb"],
        run_name="one",
    )
    assert parsed(*words.split()) == expected
    assert parsed() == TrainConfig(Path("x"))


def test_options_override_the_file_also_with_none(tmp_path: Path) -> None:
    settings = {"output_dir": "of the file", "max_steps": 5, "lora_alpha": 7, "resume_from_checkpoint": True}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"on_error": "skip"}))
    words = ["--model", "m", "--data", "d", "--config", str(tmp_path / "config.json")]
    expected = TrainConfig(Path("of the file"), max_steps=5, lora_alpha=7, resume_from_checkpoint=True, on_error="skip")
    assert parse_arguments(words)[1] == expected
    for none in ("None", "null"):
        more = ["--output", "x", "--max-steps", "-1", "--lora_alpha", none, "--resume_from_checkpoint", "false"]
        assert parse_arguments([*words, *more])[1] == TrainConfig(Path("x"), on_error="skip")


def test_a_yaml_file_holds_every_option(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: m\ndataset_name: d\noutput_dir: x\nlearning_rate: 1e-5\nbf16: true\n"
        "source: [bdhs, mask_threshold=0.9]\nbeta: 0.3\nlr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}\nreport_to: []\n"
    )
    options, config = parse_arguments(["--config", str(tmp_path / "run.yaml"), "--dataset_name", "other"])
    assert (options.model_name_or_path, options.dataset_name, options.beta) == ("m", "other", 0.3)
    assert options.source == ["bdhs", "mask_threshold=0.9"]
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    assert config == TrainConfig(Path("x"), learning_rate=1e-5, bf16=True, **schedule)


FAMILIAR = (
    "--model_name_or_path m --dataset_name d --output_dir x --num_train_epochs 2 --per_device_train_batch_size 2 "
)
FAMILIAR += "--gradient_accumulation_steps 8 --lr_scheduler_type linear --logging_steps 5 --save_total_limit 1 --bf16 "
FAMILIAR += "--resume_from_checkpoint --lora_r 16 --beta 0.2 --report_to wandb --run_name one --push_to_hub"


def test_the_words_of_a_script_of_trl_are_understood() -> None:
    options, config = parse_arguments(FAMILIAR.split())
    assert (options.dataset_name, options.beta, config.lora_r, config.report_to) == ("d", 0.2, 16, ["wandb"])
    assert (config.bf16, config.push_to_hub, config.num_train_epochs) == (True, True, 2)


def test_help_explains_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name}" in shown and field.metadata["help"] in shown
    assert "examples per forward pass on one process (default: 4)" in shown


@pytest.mark.parametrize("command", ["--help", "doctor"])
def test_other_commands_do_not_import_transformers(command: str) -> None:
    program = (
        "import sys\nfrom mmbdhs.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, command], check=True, stdout=subprocess.DEVNULL)


def test_words_become_sources_and_objectives() -> None:
    words = ["bdhs", "mask_threshold=0.9", "with_stored=true", "similarity=some/model"]
    expected = OnlineBDHSSource(BDHSConfig(mask_threshold=0.9), "some/model", True)
    assert parse_source(words) == expected
    assert parse_source(["povid", "noise_steps=300"]) == DistortedSource(300)
    for objective in (parse_objective(["ipo", "beta=0.5", "per_token=true"]), parse_objective(["ipo"], beta=0.5)):
        assert (objective.loss, objective.settings) == (ipo_loss, {"beta": 0.5})
    with pytest.raises(ValueError, match=r"beta: needs one value, got --beta 0.1 and beta=0.5"):
        parse_objective(["ipo", "beta=0.5"], beta=0.1)


def test_words_become_annotators_and_sources_that_ask_them() -> None:
    judge = parse_annotator(["endpoint", "client=https://judge.example/v1", "model_name=a-judge", "answers=kept.jsonl"])
    settings = {"client": "https://judge.example/v1", "model_name": "a-judge", "answers": "kept.jsonl"}
    assert judge == NamedAnnotator("endpoint", settings)
    online = OnlinePairsSource(judge, SamplingConfig(temperature=0.7, seed=3))
    assert parse_source(["online", "temperature=0.7", "seed=3"], judge) == online
    mixed = MixedSource(StoredSource(), online, 0.25, 3)
    assert parse_source(["mixed", "p=0.25", "temperature=0.7", "seed=3"], judge) == mixed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_source(["online"]), "annotator: needs one for the source 'online'"),
        (lambda: parse_source(["bdhs"], parse_annotator(["likelihood"])), "got the source 'bdhs'"),
        (lambda: parse_annotator(["oracle"]), "annotator: 'oracle' is unknown; known: endpoint, likelihood, model"),
        (lambda: parse_annotator(["likelihood", "margn=1"]), "annotator: 'margn' is unknown; is it 'margin'?"),
        (lambda: parse_annotator(["endpoint", "client=https://a"]), "model_name is missing"),
    ],
)
def test_annotators_that_do_not_fit_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("judge", [["likelihood"], ["model", f"model={miniature.path()}", "max_new_tokens=4"]])
def test_online_and_mixed_pairs_from_a_shell(judge: list[str], arguments: list[str], tmp_path: Path) -> None:
    source = ["--source", "mixed", "p=0.5", "max_new_tokens=6", "--annotator", *judge]
    assert main([*arguments, *source, "--max-steps", "1", "--output", str(tmp_path / "out")]) == 0
    row = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 1 and "loss" in row
    recorded = json.loads((tmp_path / "out/run.json").read_text())
    assert recorded["source"]["second"]["annotator"]["name"] == judge[0]


def test_a_reward_model_and_rloo_from_a_shell(arguments: list[str], tmp_path: Path) -> None:
    arguments = [*arguments[: arguments.index("--loss")], "--max-steps", "1"]
    folders = {name: str(tmp_path / name) for name in ("rm", "rloo", "annotated")}
    assert main([*arguments, "--objective", "reward", "centering=0.1", "--output", folders["rm"]]) == 0
    source = ["--source", "rollouts", "num_generations=2", "max_new_tokens=6"]
    policy = [*source, "--reward", f"{folders['rm']}/final", "--output", folders["rloo"]]
    assert main([*arguments, "--objective", "rloo", *policy, "--beta", "0.1"]) == 0
    judged = ["--reward", "annotator", "--annotator", "likelihood", "--output", folders["annotated"]]
    assert main([*arguments, "--objective", "ppo", "num_ppo_epochs=1", *source, *judged]) == 0
    recorded = json.loads((tmp_path / "rloo/run.json").read_text())
    assert recorded["objective"]["beta"] == 0.1 and recorded["source"]["num_generations"] == 2
    assert recorded["source"]["reward"]["name"] == f"{folders['rm']}/final"
    for name in ("rloo", "annotated"):
        (row,) = (json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines())
        assert {"reward", "kl", "entropy", "completions/mean_length", "clip_ratio"} <= row.keys()


def test_words_become_rollouts() -> None:
    reward = parse_reward(["annotator"], annotator := parse_annotator(["likelihood"]))
    found = parse_source(["rollouts", "num_generations=3", "max_new_tokens=9", "seed=2"], annotator, reward)
    assert found == RolloutSource(reward, 3, SamplingConfig(max_new_tokens=9, seed=2))
    assert parse_method(["rloo", "max_kl=5"], None, 0.1) == (rloo(beta=0.1, max_kl=5), "rollouts")
    assert parse_method(["ppo", "lam=1"], None) == (ppo(lam=1), "rollouts")
    assert parse_method(["reward", "centering=1"], None) == (reward_modelling(centering=1), "stored")
    assert parse_method(None, None)[1] == "stored" and parse_method(None, ["ipo"])[0].loss == ipo_loss


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "rlo"], "objective: 'rlo' is unknown; is it 'rloo'?"),
        (["--objective", "rloo"], "reward: needs one for the source 'rollouts', such as --reward FOLDER"),
        (["--objective", "rloo", "beta=-1"], "beta: needs a finite number of at least 0, got -1"),
        (["--objective", "rloo", "--loss", "dpo"], "loss: needs no --objective, got --objective rloo and --loss dpo"),
        (["--objective", "ppo", "--reward", "gone"], "reward: needs annotator, module:name, or the folder of a model"),
        (["--objective", "ppo", "--reward", "annotator"], "annotator: needs one for --reward annotator"),
        (["--objective", "rloo", "--source", "stored"], "source: needs rewards for _RLOO, as RolloutSource gives, got"),
        (
            ["--source", "rollouts", "--reward", "math:fsum"],
            "objective: needs rloo() or ppo() for RolloutSource, got _",
        ),
        (["--reward", "math:fsum"], "reward: is used by the source rollouts, got the source 'stored'"),
        (
            ["--objective", "rloo", "--reward", "math:fsum", "--source", "rollouts", "num_generations=1"],
            "num_generations: needs an integer of at least 2, got 1",
        ),
    ],
)
def test_parts_of_reinforcement_learning_that_do_not_fit_end_with_a_line(
    words: list[str], message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments[: arguments.index("--loss")], *words, "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().err
    assert shown.startswith("mmbdhs train: ") and message in shown and shown.count("\n") == 1


OWN_PARTS = '''
import torch
from mmbdhs.losses import PreferenceLoss, dpo_loss
from mmbdhs.training import Candidates, StoredSource

def squared_hinge_loss(policy_chosen_logps, policy_rejected_logps, margin: float = 1.0):
    """A loss of pairs without a reference."""
    gap = margin - policy_chosen_logps + policy_rejected_logps
    return PreferenceLoss(gap.clamp(min=0).square(), policy_chosen_logps.detach(), policy_rejected_logps.detach())

class Swapped:
    columns = ("chosen", "rejected")

    def __init__(self, swap: bool = True):
        self.swap = swap

    def __call__(self, model, processor, examples):
        found = StoredSource()(model, processor, examples)
        return [Candidates(one.responses[::-1] if self.swap else one.responses) for one in found]

class Longer:
    def __call__(self, comparisons):
        return [int(len(one.second) > len(one.first)) for one in comparisons]

class Plain:
    """An objective."""
    needs_reference = False

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, policy, reference):
        losses = -self.weight * policy.sums[:, 0]
        return PreferenceLoss(losses, losses.detach(), losses.detach())

numbers = [1, 2]
'''


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own module in the current folder."""
    (tmp_path / "own_parts.py").write_text(OWN_PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    sys.modules.pop("own_parts", None)


def test_own_sources_losses_and_annotators_are_found_by_their_names(
    own_parts: None, arguments: list[str], tmp_path: Path
) -> None:
    arguments = arguments[: arguments.index("--loss")]
    runs = {
        "one": ["--source", "own_parts:Swapped", "swap=true", "--loss", "own_parts:squared_hinge_loss", "margin=2"],
        "two": ["--source", "own_parts:Swapped", "--loss", "own_parts:Plain", "weight=0.5"],
        "three": ["--source", "online", "max_new_tokens=6", "--annotator", "own_parts:Longer"],
    }
    for name, words in runs.items():
        assert main([*arguments, *words, "--max_steps", "1", "--output_dir", str(tmp_path / name)]) == 0
    recorded = json.loads((tmp_path / "one/run.json").read_text())
    assert recorded["objective"]["loss"] == "own_parts.squared_hinge_loss"
    assert recorded["source"] == "own_parts.Swapped"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "own_parts:gone"], "loss: needs an object that can be imported, got 'own_parts:gone': module"),
        (["--loss", "gone_module:one"], "loss: needs an object that can be imported, got 'gone_module:one': No module"),
        (
            ["--source", "own_parts:numbers"],
            "source: needs a class or a function, got 'own_parts:numbers', which is list",
        ),
        (["--source", "own_parts:Swapped", "swp=1"], "Swapped.__init__() got an unexpected keyword argument 'swp'"),
        (["--source", "online", "--annotator", "own_parts:"], "annotator: needs an object that can be imported"),
        (
            ["--dataset_name", "someone/gone"],
            "dataset_name: needs a file, a folder or a data set of the Hub, got 'someone/",
        ),
        (
            ["--dataset_test_split", "test"],
            "pairs.jsonl: needs a split test, got data without splits. Pass one of them as split",
        ),
        (
            ["--dataset_test_split", "test", "--eval_dataset_name", "x"],
            "dataset_test_split: needs None where eval_data",
        ),
        (["--report_to", "wandbee"], "report_to: needs trackers of Accelerate that are installed"),
    ],
)
def test_names_that_do_not_fit_end_with_a_line(
    words: list[str],
    message: str,
    own_parts: None,
    arguments: list[str],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("mmbdhs.training.command.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--output_dir", "x", *words])
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("mmbdhs train: ") and message in shown


def test_an_interrupt_while_the_model_loads_ends_with_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmbdhs.training.command.load_model", interrupted)
    assert main([*arguments, "--output_dir", "x"]) == 130
    expected = "interrupted; the same command with --resume_from_checkpoint continues\n"
    assert capsys.readouterr().err.endswith(expected)


def test_held_out_records_come_from_a_split_or_a_file(arguments: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        line["images"] = [str(tmp_path / line["images"][0])]
    parts = {"train": datasets.Dataset.from_list(lines[:6]), "held_out": datasets.Dataset.from_list(lines[6:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    write_jsonl(tmp_path / "held_out.jsonl", lines[6:])
    found = []
    for name, words in {
        "split": ["--dataset_test_split", "held_out"],
        "file": ["--eval_dataset_name", str(tmp_path / "held_out.jsonl")],
    }.items():
        run = [*arguments, "--dataset_name", str(tmp_path / "saved"), "--output_dir", str(tmp_path / name), *words]
        assert main(run) == 0
        found.append([row for row in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())][-1])
    assert found[0]["eval_loss"] == found[1]["eval_loss"]
