"""The trainer's settings. The help of each field is also the help of its option in `mmbdhs train`.

Names are those of transformers' TrainingArguments, TRL and PEFT where the meaning is the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.checks import at_least_zero, integer, number_in, one_of
from mmbdhs.runs import check_known
from mmbdhs.training.schedule import SCHEDULES, rate_factors

_AT_LEAST_ONE = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "save_total_limit",
    "logging_steps",
)


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

    output_dir: str | Path = field(
        metadata={"help": "folder for checkpoints, log.jsonl and the final model", "aliases": ["--output"]}
    )
    num_train_epochs: int = _setting(3, "number of passes over all examples")
    max_steps: int = _setting(-1, "number of optimiser steps, in place of num_train_epochs; -1: as the epochs say")
    per_device_train_batch_size: int = _setting(4, "examples per forward pass on one process")
    gradient_accumulation_steps: int = _setting(
        4, "forward passes of each process per optimiser step, which takes the product of both and of the processes"
    )
    learning_rate: float = _setting(1e-6, "AdamW's highest learning rate")
    projector_learning_rate: float | None = _setting(
        None, "learning rate of the projector; None: learning_rate without adapters, a frozen projector with adapters"
    )
    weight_decay: float = _setting(0.0, "AdamW's weight decay on all trained parameters")
    lr_scheduler_type: str = _setting("cosine", "schedule of the learning rates, by its name in transformers")
    lr_scheduler_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "further arguments of the schedule, on a command line as a JSON object"}
    )
    warmup_steps: float = _setting(
        0.0, "optimiser steps in which the rates rise linearly from 0; below 1, their share of all steps"
    )
    max_grad_norm: float = _setting(1.0, "norm that the gradient is clipped to")
    bf16: bool = _setting(
        False,
        "run the forward passes under autocast to bfloat16; trained weights are float32, others keep the dtype they "
        "are loaded in",
    )
    fp16: bool = _setting(False, "run the forward passes under autocast to float16, with a scaled loss")
    shard: bool = _setting(
        False, "shard parameters, gradients and optimiser state over all processes (FSDP2); not with fp16"
    )
    gradient_checkpointing: bool = _setting(
        False, "recompute the decoder layers in the backward pass instead of storing their activations"
    )
    lora_r: int = _setting(
        128,
        "rank of LoRA adapters on the text decoder's linear layers; 0: train the whole text decoder, the output head "
        "and the projector, if the model has a module named like one (the log says what is trained). A model with "
        "adapters of its own is trained as it is",
    )
    lora_alpha: float | None = _setting(None, "LoRA's alpha; None: twice the rank")
    lora_dropout: float = _setting(0.0, "probability of dropout before the adapters")
    save_steps: int = _setting(0, "optimiser steps between two checkpoints; 0: none before the final model")
    save_total_limit: int = _setting(2, "number of newest checkpoints to keep")
    eval_steps: int = _setting(0, "optimiser steps between two evaluations; 0: one evaluation at the end")
    logging_steps: int = _setting(10, "optimiser steps per line of log.jsonl")
    report_to: list[str] = field(
        default_factory=list,
        metadata={
            "help": "trackers that get the lines of log.jsonl too, by their names in Accelerate: tensorboard, wandb, "
            "trackio, mlflow and others; all: those that are installed; none"
        },
    )
    run_name: str | None = _setting(None, "name of the run in the trackers; None: the name of output_dir")
    push_to_hub: bool = _setting(False, "upload the final model to the Hub")
    hub_model_id: str | None = _setting(None, "the model's name on the Hub; None: the name of output_dir")
    hub_private_repo: bool = _setting(False, "create the model's repository on the Hub as a private one")
    seed: int = _setting(0, "seed of example order, dropout and new adapters")
    dataloader_num_workers: int = _setting(
        0,
        "threads that read, decode and process the examples of the next step while the model runs one; 0: the model "
        "waits for them. Several threads read from records at the same time",
    )
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
    resume_from_checkpoint: bool = _setting(
        False, "continue from the newest complete checkpoint in output_dir, if there is one"
    )
    on_error: str = _setting("raise", "what to do with an example that cannot be read: raise or skip")

    def __post_init__(self) -> None:
        if not isinstance(self.output_dir, (str, os.PathLike)):
            raise TypeError(f"output_dir: needs a path, got {self.output_dir!r}")
        if not os.fspath(self.output_dir):
            raise ValueError("output_dir: needs a path, got ''")
        if self.max_steps != -1:
            integer("max_steps", self.max_steps, 1)
        for name in _AT_LEAST_ONE:
            integer(name, getattr(self, name), 1)
        for name in ("lora_r", "save_steps", "eval_steps", "seed", "dataloader_num_workers"):
            integer(name, getattr(self, name), 0)
        optional = [name for name in ("projector_learning_rate", "lora_alpha") if getattr(self, name) is not None]
        for name in ("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", *optional):
            at_least_zero(**{name: getattr(self, name)})
        number_in("lora_dropout", self.lora_dropout, 0, 1)
        one_of("on_error", self.on_error, ("raise", "skip"))
        for name in (one.name for one in fields(self) if isinstance(one.default, bool)):
            one_of(name, getattr(self, name), (True, False))
        if self.fp16 and self.bf16:
            raise ValueError("fp16: needs bf16=False, got both")
        if self.fp16 and self.shard:
            raise ValueError("fp16: needs a model that is not sharded, got shard=True")
        self._check_schedule()
        trackers = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        object.__setattr__(self, "report_to", [] if trackers == ["none"] else trackers)

    def _check_schedule(self) -> None:
        one_of("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        try:
            rate_factors(self.lr_scheduler_type, self.warmup_steps, 100, self.lr_scheduler_kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"lr_scheduler_kwargs: do not fit {self.lr_scheduler_type}: {error}") from error

    @property
    def mixed_precision(self) -> str:
        """What Accelerate calls the dtype of autocast."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Make a TrainConfig from a mapping. Raises ValueError for an unknown name and suggests the nearest one."""
        check_known("config", settings, [one.name for one in fields(cls)])
        return cls(**settings)
