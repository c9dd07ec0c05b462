"""The trainer's settings. The help of each field is also the help of its option in `mmbdhs train`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.checks import at_least_zero, integer, number_in, one_of
from mmbdhs.runs import check_known

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""Factors of the learning rate after the warm-up, as functions of the share (0 to 1) of the remaining steps done."""


def _setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help of its command-line option."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`. `mmbdhs train --help` prints what they mean; the texts are the `help` of the fields.

    Epochs, batch size, learning rate and adapters are by default among those of the paper's grids (arXiv 2407.02477).

    Raises ValueError for a value out of range and TypeError for an output that is no path, naming the field.
    """

    _argument_group_name: ClassVar[str] = "settings of the run (TrainConfig)"

    output: str | Path = field(metadata={"help": "folder for checkpoints, log.jsonl and the final model"})
    epochs: int = _setting(3, "number of passes over all examples")
    max_steps: int | None = _setting(None, "largest number of optimiser steps; None: as many as the epochs take")
    batch_size: int = _setting(16, "examples per optimiser step, over all processes")
    micro_batch_size: int = _setting(4, "examples per forward pass on one process")
    learning_rate: float = _setting(1e-6, "AdamW's learning rate after the warm-up")
    projector_learning_rate: float | None = _setting(
        None, "learning rate of the projector; None: learning_rate without adapters, a frozen projector with adapters"
    )
    weight_decay: float = _setting(0.0, "AdamW's weight decay on all trained parameters")
    schedule: str = _setting(
        "cosine", "learning rates after the warm-up: cosine or linear, which both fall to 0, or constant"
    )
    warmup_ratio: float = _setting(0.03, "share of all optimiser steps in which the rates rise linearly from 0")
    max_grad_norm: float = _setting(1.0, "norm that the gradient is clipped to")
    mixed_precision: str = _setting(
        "no",
        "autocast of the forward passes: no, bf16 or fp16; trained weights are float32, others keep the dtype they are "
        "loaded in",
    )
    shard: bool = _setting(
        False, "shard parameters, gradients and optimiser state over all processes (FSDP2); not with fp16"
    )
    gradient_checkpointing: bool = _setting(
        False, "recompute the decoder layers in the backward pass instead of storing their activations"
    )
    lora_rank: int = _setting(
        128,
        "rank of LoRA adapters on the text decoder's linear layers; 0: train the whole text decoder, the output head "
        "and the projector, if the model has a module named like one (the log says what is trained). A model with "
        "adapters of its own is trained as it is",
    )
    lora_alpha: float | None = _setting(None, "LoRA's alpha; None: twice the rank")
    lora_dropout: float = _setting(0.0, "probability of dropout before the adapters")
    save_steps: int = _setting(0, "optimiser steps between two checkpoints; 0: none before the final model")
    keep_checkpoints: int = _setting(2, "number of newest checkpoints to keep")
    eval_steps: int = _setting(0, "optimiser steps between two evaluations; 0: one evaluation at the end")
    log_steps: int = _setting(10, "optimiser steps per line of log.jsonl")
    seed: int = _setting(0, "seed of example order, dropout and new adapters")
    truncate_responses: bool = _setting(
        False, "cut responses at the end of the model's context instead of raising an error"
    )
    append_eos: bool = _setting(
        True, "end each response with a token that ends generation where the chat template writes none"
    )
    drop_identical: bool = _setting(
        True, "leave out examples whose other responses say what the chosen one says; the log counts them"
    )
    drop_garbled: bool = _setting(
        False, "leave out examples with a response that is no language; the log counts them in any case"
    )
    resume: bool = _setting(False, "continue from the newest complete checkpoint in output, if there is one")
    on_error: str = _setting("raise", "what to do with an example that cannot be read: raise or skip")

    def __post_init__(self) -> None:
        if not isinstance(self.output, (str, os.PathLike)):
            raise TypeError(f"output: needs a path, got {self.output!r}")
        if not os.fspath(self.output):
            raise ValueError("output: needs a path, got ''")
        at_least_one = ("epochs", "batch_size", "micro_batch_size", "keep_checkpoints", "log_steps")
        for name in (*at_least_one, *self._given("max_steps")):
            integer(name, getattr(self, name), 1)
        for name in ("lora_rank", "save_steps", "eval_steps", "seed"):
            integer(name, getattr(self, name), 0)
        not_negative = ("learning_rate", "weight_decay", "max_grad_norm")
        for name in (*not_negative, *self._given("projector_learning_rate", "lora_alpha")):
            at_least_zero(**{name: getattr(self, name)})
        for name in ("warmup_ratio", "lora_dropout"):
            number_in(name, getattr(self, name), 0, 1)
        one_of("schedule", self.schedule, tuple(SCHEDULES))
        one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        one_of("on_error", self.on_error, ("raise", "skip"))
        for name in (one.name for one in fields(self) if isinstance(one.default, bool)):
            one_of(name, getattr(self, name), (True, False))
        if self.shard and self.mixed_precision == "fp16":
            raise ValueError("mixed_precision: needs 'no' or 'bf16' with shard, got 'fp16'")

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Make a TrainConfig from a mapping. Raises ValueError for an unknown name and suggests the nearest one."""
        check_known("config", settings, [one.name for one in fields(cls)])
        return cls(**settings)
