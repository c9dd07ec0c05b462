"""`python -m mmbdhs train`: a run of the reference trainer from the command line."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbdhs.training.config import TrainConfig, unknown

if TYPE_CHECKING:
    from mmbdhs.training.objectives import Objective
    from mmbdhs.training.pair_sources import PairSource

DESCRIPTION = """Align a model with preference pairs. KEY=VALUE are settings of the source, such as those of BDHSConfig,
and of the loss; values are JSON or plain text. On several devices: accelerate launch --multi_gpu --num_processes N -m
mmbdhs train …, or torchrun; without accelerators these are processes of the CPU (two of them are tested). Each has the
whole model, or with --shard true its part of it (FSDP2; Accelerate's own --use_fsdp and DeepSpeed are refused). Ends
with status 143 after SIGTERM and 130 after SIGINT, behind a checkpoint that --resume true goes on from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command: its own, and one for each field of TrainConfig."""
    parser.add_argument("--model", required=True, help="folder or name of model and processor")
    parser.add_argument("--dtype", help="of its weights; by default float32, and its own beside adapters")
    parser.add_argument("--data", type=Path, required=True, help="JSONL; image paths are relative to its folder")
    settings = {"nargs": "+", "metavar": ("NAME", "KEY=VALUE")}
    parser.add_argument(
        "--source", default=["stored"], help="of responses: stored, supervised, bdhs, povid", **settings
    )
    parser.add_argument("--loss", default=["dpo"], help="of mmbdhs.losses: dpo, ipo, slic, simpo, sft, …", **settings)
    parser.add_argument("--config", type=Path, help="JSON object with fields of TrainConfig; options override it")
    for field in fields(TrainConfig):
        default = "" if field.default is MISSING else f"default {field.default}"
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, dest=field.name, type=_value, default=argparse.SUPPRESS, help=default)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 2 for arguments that do not fit, 128 + signal number for a run that was interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = _config(arguments)
        source, objective = _source(arguments.source, config.on_error), _objective(arguments.loss)
    except (ValueError, TypeError) as error:
        print(f"mmbdhs train: {error}", file=sys.stderr)
        return 2
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmbdhs.data import read_records
    from mmbdhs.training.trainer import train

    dtype = arguments.dtype or ("auto" if config.lora_rank else "float32")
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=dtype)
    processor = AutoProcessor.from_pretrained(arguments.model)
    result = train(model, processor, read_records(arguments.data), source, objective, config)
    print(f"{result.steps} steps; model and processor lie in {result.folder}")
    return 128 + result.interrupted if result.interrupted else 0


def _config(arguments: argparse.Namespace) -> TrainConfig:
    given = vars(arguments)
    settings = json.loads(arguments.config.read_text(encoding="utf-8")) if arguments.config else {}
    settings |= {field.name: given[field.name] for field in fields(TrainConfig) if field.name in given}
    if "output" not in settings:
        raise ValueError("output: needs a folder, got none")
    return TrainConfig.from_dict(settings)


def _source(words: Sequence[str], on_error: str) -> PairSource:
    from mmbdhs.sampling import BDHSConfig
    from mmbdhs.training.pair_sources import Distorted, OnlineBDHS, Stored, Supervised

    def bdhs(similarity: str | None = None, with_stored: bool = False, **config: Any) -> OnlineBDHS:
        return OnlineBDHS(BDHSConfig(**config), similarity, with_stored, on_error)

    def povid(**settings: Any) -> Distorted:
        return Distorted(**settings, on_error=on_error)

    makers: dict[str, Callable[..., PairSource]] = {
        "stored": Stored,
        "supervised": Supervised,
        "bdhs": bdhs,
        "povid": povid,
    }
    name, *settings = words
    if name not in makers:
        raise ValueError(unknown("source", name, makers))
    return makers[name](**_settings(settings))


def _objective(words: Sequence[str]) -> Objective:
    from mmbdhs import losses
    from mmbdhs.training.objectives import pairwise, supervised

    name, *settings = words
    if name == "sft":
        return supervised(**_settings(settings))
    known = {of.removesuffix("_loss"): loss for of in losses.__all__ if _compares(loss := getattr(losses, of))}
    if name not in known:
        raise ValueError(unknown("loss", name, ["sft", *known]))
    return pairwise(known[name], **_settings(settings))


def _compares(loss: Any) -> bool:
    """Whether it is a loss of a chosen and a rejected response."""
    return inspect.isfunction(loss) and "policy_rejected_logps" in inspect.signature(loss).parameters


def _settings(words: Sequence[str]) -> dict[str, Any]:
    split = [word.partition("=") for word in words]
    if wrong := [word for word, (_, sign, _) in zip(words, split, strict=True) if not sign]:
        raise ValueError(f"settings: need KEY=VALUE, got {wrong[0]!r}")
    return {key: _value(value) for key, _, value in split}


def _value(text: str) -> Any:
    """JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
