"""The trainer's settings."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""From the share of the steps behind the warm-up that are done, 0 … 1, to a factor of the learning rate."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`.

    output: folder for checkpoints, log and final model.
    epochs, max_steps: how often every example is visited, and how many optimiser steps there are at most.
    batch_size: examples of an optimiser step, over all processes. micro_batch_size: examples of one forward.
    learning_rate, projector_learning_rate: of AdamW; None is no rate of the projector's own. schedule: how both go on
        after a linear warm-up over `warmup_ratio` of all steps: to 0 ("cosine", "linear") or not at all ("constant").
    weight_decay: of all that is trained. max_grad_norm: the gradient is clipped to.
    mixed_precision: "no", "bf16" or "fp16", by autocast; weights keep the dtype they came in.
    shard: spread parameters, gradients and the optimiser's state over all processes (FSDP2); not in "fp16".
    gradient_checkpointing: run the decoder's layers again in backward instead of keeping what is inside them.
    lora_rank: of adapters on the text decoder's linear layers; 0 trains decoder, output head and projector as a whole.
        lora_alpha: None for twice the rank. Beside adapters the projector is trained if it has a rate of its own.
    save_steps, eval_steps: a checkpoint, an evaluation after every so many steps; 0 for one at the end alone.
    keep_checkpoints: how many. log_steps: a line of log.jsonl for every so many.
    seed: of order, dropout and new adapters.
    truncate_responses: cut responses at the end of the model's context instead of raising.
    resume: go on from the newest complete checkpoint in `output`, if there is one.
    on_error: "raise" at an example that cannot be read, or "skip" it.
    """

    output: str | os.PathLike
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int = 4
    learning_rate: float = 1e-6
    projector_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    shard: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    save_steps: int = 0
    keep_checkpoints: int = 2
    eval_steps: int = 0
    log_steps: int = 10
    seed: int = 0
    truncate_responses: bool = False
    resume: bool = False
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if not isinstance(self.output, (str, os.PathLike)):
            raise TypeError(f"output: needs a path, got {self.output!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("micro_batch_size", 1), ("keep_checkpoints", 1)):
            self._integer(name, least)
        for name, least in (("lora_rank", 0), ("save_steps", 0), ("eval_steps", 0), ("log_steps", 1), ("seed", 0)):
            self._integer(name, least)
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            self._number(name, 0, float("inf"))
        for name in ("warmup_ratio", "lora_dropout"):
            self._number(name, 0, 1)
        if self.max_steps is not None:
            self._integer("max_steps", 1)
        for name in ("projector_learning_rate", "lora_alpha"):
            if getattr(self, name) is not None:
                self._number(name, 0, float("inf"))
        self._one_of("schedule", tuple(SCHEDULES))
        self._one_of("mixed_precision", ("no", "bf16", "fp16"))
        self._one_of("on_error", ("raise", "skip"))
        for name in ("shard", "gradient_checkpointing", "truncate_responses", "resume"):
            self._one_of(name, (True, False))
        if self.shard and self.mixed_precision == "fp16":
            raise ValueError("mixed_precision: needs 'no' or 'bf16' with shard, got 'fp16'")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Raises ValueError for a name that is no field, with the nearest one."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(unknown("config", name, known))
        return cls(**settings)

    def _integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: needs an integer of at least {least}, got {value!r}")

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
            raise ValueError(f"{name}: needs a number in [{low}, {high}], got {value!r}")

    def _one_of(self, name: str, choices: tuple) -> None:
        value = getattr(self, name)
        if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
            raise ValueError(f"{name}: needs one of {', '.join(map(repr, choices))}, got {value!r}")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{what}: {name!r} is unknown; " + (f"is it {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}")
