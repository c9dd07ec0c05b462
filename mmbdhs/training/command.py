"""`mmbdhs train`: a run of the reference trainer from the command line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mmbdhs.data import open_records, usable_rows
from mmbdhs.errors import ExampleError, UnsupportedModelError
from mmbdhs.runs import FolderInUseError, fail, load_model, parse_options
from mmbdhs.training.command_parts import check_fit, parse_annotator, parse_objective, parse_source
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.learner import NonFiniteLossError
from mmbdhs.training.pair_sources import needed_columns
from mmbdhs.training.run_folder import check_unused
from mmbdhs.training.trainer import train

DESCRIPTION = """Align a model with preference pairs. KEY=VALUE are settings of the source, such as those of BDHSConfig,
and of the loss; values are JSON or plain text. To train on several devices, start the command with torchrun, or with
accelerate launch --multi_gpu --num_processes N -m mmbdhs train …; without accelerators the processes run on the CPU
(tested with two). Each process holds the whole model, or a shard of it with --shard true (FSDP2; Accelerate's own
--use_fsdp and DeepSpeed are refused). SIGTERM and SIGINT end the command with status 143 and 130 after a checkpoint,
from which --resume true continues."""

_NAME_AND_SETTINGS = {"metavar": ("NAME", "KEY=VALUE")}


@dataclass(frozen=True)
class CommandOptions:
    """The options of `mmbdhs train` that are not settings of the trainer."""

    _argument_group_name: ClassVar[str] = "model, data and method"

    model: str = field(metadata={"help": "folder or name of model and processor"})
    data: Path = field(
        metadata={"help": "JSON, JSONL or Parquet file, or folder of a data set, in a layout of docs/data.md"}
    )
    turns: str = field(
        default="last", metadata={"help": "turns of conversations that are trained on: first, last or every"}
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "where relative paths of images start; None: the folder of the data"}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "dtype of the weights; None: float32, or the stored dtype with adapters"}
    )
    source: list[str] = field(
        default_factory=["stored"].copy,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": "source of the responses: stored, supervised, bdhs, povid, online (Online-DPO) or mixed (Mixed-DPO)"
        },
    )
    annotator: list[str] | None = field(
        default=None,
        metadata=_NAME_AND_SETTINGS
        | {
            "help": "what ranks two responses for online and mixed: endpoint (client=URL model_name=NAME), or model or "
            "likelihood, by the model at model=DIR, without which the trained model judges itself"
        },
    )
    loss: list[str] = field(
        default_factory=["dpo"].copy,
        metadata=_NAME_AND_SETTINGS | {"help": "loss of mmbdhs.losses, such as dpo, ipo, slic or simpo, or sft"},
    )
    config: Path | None = field(
        default=None, metadata={"help": "JSON file of an object with fields of TrainConfig; options override it"}
    )


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 1 if the folder holds another run or the run fails, 128 + signal number
    after a signal. Wrong arguments and data, which are found before the model is loaded, end the process with status 2,
    as those of any other command do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options, config = parse_arguments(argv)
        annotator = None if options.annotator is None else parse_annotator(options.annotator)
        source, objective = parse_source(options.source, annotator), parse_objective(options.loss)
        check_fit(source, objective)
        check_unused(Path(config.output), config.resume, "Pass --resume true to continue, or choose another --output")
        records = open_records(options.data, turns=options.turns, image_folder=options.image_folder)
        usable_rows(records, needed_columns(source), config.on_error)
        dtype = options.dtype or ("auto" if config.lora_rank else "float32")
        model, processor = load_model(options.model, dtype)
        if annotator is not None:
            annotator.load(model, processor)
    except FolderInUseError as error:
        return fail("train", error, 1)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(fail("train", error, 2)) from error
    try:
        result = train(model, processor, records, source, objective, config)
    except (FolderInUseError, ExampleError, UnsupportedModelError, NonFiniteLossError) as error:
        return fail("train", error, 1)
    if result.interrupted:
        print(f"interrupted after {result.steps} steps; --resume true continues from {result.folder}")
        return 128 + result.interrupted
    print(f"{result.steps} steps; model and processor are in {result.folder}")
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[CommandOptions, TrainConfig]:
    """The command's options and the trainer's settings. Raises ValueError or TypeError for wrong arguments."""
    usage = "mmbdhs train --model MODEL --data DATA --output OUTPUT [OPTION ...]"
    options, config = parse_options(argv, (CommandOptions, TrainConfig), usage, DESCRIPTION)
    return options, config
