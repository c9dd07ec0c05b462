"""`mmbdhs train`: a run of the reference trainer from the command line."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mmbdhs.data import Records, usable_rows
from mmbdhs.errors import ExampleError, UnsupportedModelError
from mmbdhs.runs import FolderInUseError, InputOptions, fail, load_model, open_named, parse_options
from mmbdhs.training.batches import held_out_examples
from mmbdhs.training.command_parts import (
    check_fit,
    loss_names,
    parse_annotator,
    parse_method,
    parse_reward,
    parse_source,
)
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.learner import KLBoundError, NonFiniteLossError
from mmbdhs.training.pair_sources import needed_columns
from mmbdhs.training.preparation import make_accelerator
from mmbdhs.training.run_folder import check_unused
from mmbdhs.training.trainer import train

DESCRIPTION = """Align a model with preference pairs. KEY=VALUE are settings of the source, such as those of BDHSConfig,
and of the loss; values are JSON or plain text. To train on several devices, start the command with torchrun, or with
accelerate launch --multi_gpu --num_processes N -m mmbdhs train …; without accelerators the processes run on the CPU
(tested with two). Each process holds the whole model, or a shard of it with --shard true (FSDP2; Accelerate's own
--use_fsdp and DeepSpeed are refused). SIGTERM and SIGINT end the command with status 143 and 130 after a checkpoint,
from which --resume_from_checkpoint continues."""

_CONTINUE = "the same command with --resume_from_checkpoint"
_RESUME_ADVICE = "Pass --resume_from_checkpoint to continue, or choose another --output_dir"
# What ends a run with a line and status 1.
_FAILURES = (
    FolderInUseError,
    ExampleError,
    UnsupportedModelError,
    NonFiniteLossError,
    KLBoundError,
    OSError,
    ValueError,
)
_NAME_AND_SETTINGS = {"metavar": ("NAME", "KEY=VALUE")}


@dataclass(frozen=True, kw_only=True)
class CommandOptions(InputOptions):
    """The options of `mmbdhs train` that are not settings of the trainer.

    dataset_test_split: held-out split of the same data set; None for none.
    eval_dataset_name: held-out file, folder or data set on the Hub, in place of a split.
    turns: turns of conversations that are trained on: first, last or every.
    dtype: dtype of the weights; None: float32, or the stored dtype with adapters.
    """

    _argument_group_name: ClassVar[str] = "model, data and method"

    dataset_test_split: str | None = None
    eval_dataset_name: str | None = None
    turns: str = "last"
    dtype: str | None = None  # type: ignore[assignment]
    source: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": "source of the responses: stored, supervised, bdhs, povid, online (Online-DPO), mixed (Mixed-DPO), "
            "rollouts (num_generations=4 max_new_tokens=256) or your own, as module:name; None: stored, or rollouts "
            "for the objectives rloo and ppo"
        },
    )
    annotator: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": "what ranks two responses for online and mixed: endpoint (client=URL model_name=NAME), or model or "
            "likelihood, by the model at model=DIR, without which the trained model judges itself; or your own, as "
            "module:name"
        },
    )
    objective: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {"help": "reward (a reward model), rloo or ppo, in place of a loss of pairs; None: what --loss says"},
    )
    reward: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": "what scores the responses of rollouts: the folder of a reward model, annotator (the share of the "
            "other responses that one beats, by --annotator), or your own, as module:name"
        },
    )
    loss: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": f"loss of mmbdhs.losses: {', '.join(sorted(loss_names()))}; or your own loss of pairs or your own "
            "objective, as module:name; None: dpo"
        },
    )
    beta: float | None = field(default=None, metadata={"help": "beta of the loss or the objective; None: its default"})

    def open_held_out(self) -> Records | None:
        """The held-out records. None if none are named."""
        if self.eval_dataset_name is not None:
            if self.dataset_test_split is not None:
                raise ValueError("dataset_test_split: needs None where eval_dataset_name is given, got both")
            return open_named(self.eval_dataset_name, turns=self.turns, image_folder=self.image_folder)
        return None if self.dataset_test_split is None else self.open_records(self.turns, self.dataset_test_split)


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 1 if the folder holds another run or the run fails, 128 + signal number
    after a signal. Wrong arguments and data, which are found before the model is loaded, end the process with status 2,
    as those of any other command do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(argv)
    except KeyboardInterrupt:  # before the first step or after the last one, where `train` does not catch it
        print(f"interrupted; {_CONTINUE} continues", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(argv: Sequence[str]) -> int:
    try:
        options, config = parse_arguments(argv)
        annotator = None if options.annotator is None else parse_annotator(options.annotator)
        reward = parse_reward(options.reward, annotator)
        objective, usual = parse_method(options.objective, options.loss, options.beta)
        source = parse_source(options.source or [usual], annotator, reward)
        check_fit(source, objective)
        check_unused(Path(config.output_dir), config.resume_from_checkpoint, _RESUME_ADVICE)
        records, held_out = options.open_records(options.turns), options.open_held_out()
        usable_rows(records, needed_columns(source), config.on_error)
        if held_out is not None:
            held_out_examples(held_out, needed_columns(source), config.on_error)
        make_accelerator(config)
        dtype = options.dtype or ("auto" if config.lora_r else "float32")
        model, processor = load_model(options.model_name_or_path, dtype)
        if annotator is not None:
            annotator.load(model, processor)
        if reward is not None:
            reward.load(model)
    except FolderInUseError as error:
        return fail("train", error, 1)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SystemExit(fail("train", error, 2)) from error
    try:
        result = train(model, processor, records, source, objective, config, eval_records=held_out)
    except _FAILURES as error:
        return fail("train", error, 1)
    if result.interrupted:
        print(f"interrupted after {result.steps} steps; {_CONTINUE} continues from {result.folder}")
        return 128 + result.interrupted
    print(f"{result.steps} steps; model and processor are in {result.folder}")
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[CommandOptions, TrainConfig]:
    """The command's options and the trainer's settings. Raises ValueError or TypeError for wrong arguments."""
    usage = "mmbdhs train --model_name_or_path MODEL --dataset_name DATA --output_dir OUT [OPTION ...]"
    options, config = parse_options(argv, (CommandOptions, TrainConfig), usage, DESCRIPTION)
    return options, config
