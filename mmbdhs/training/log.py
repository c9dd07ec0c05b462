"""What a training run tells: a progress bar, log.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmbdhs.data import read_jsonl, write_jsonl

_LOG = logging.getLogger("mmbdhs")


class Tally(NamedTuple):
    """Sums over examples. Rewards are NaN for objectives without them.

    tokens: of prompts and responses that the policy's forward took. undecided: examples whose source had nothing to
    learn from. skipped: examples that could not be read.
    """

    examples: float
    loss: float
    margin: float
    accuracy: float
    chosen_reward: float
    rejected_reward: float
    tokens: float
    undecided: float = 0.0
    skipped: float = 0.0

    @classmethod
    def of(cls, losses: Tensor, chosen: Tensor, rejected: Tensor, tokens: int) -> Tensor:
        """The sums of B examples, float64 [9] on the CPU."""
        margins = chosen - rejected
        accuracy = torch.where(margins.isnan(), margins, (margins > 0).to(margins.dtype))
        sums = torch.stack([losses.detach(), margins, accuracy, chosen, rejected]).cpu().double().sum(dim=1)
        counts = sums.new_tensor([tokens, 0, 0])
        return torch.cat([sums.new_tensor([len(losses)]), sums, counts])

    @classmethod
    def left_out(cls, undecided: int, skipped: int) -> Tensor:
        """Of examples without a loss, float64 [9] on the CPU."""
        return torch.tensor([*[0.0] * (len(cls._fields) - 2), undecided, skipped], dtype=torch.float64)

    def row(self, seconds: float) -> dict[str, float]:
        """Means, rates and counts."""
        names = ("loss", "margin", "accuracy", "chosen_reward", "rejected_reward")
        means = {name: getattr(self, name) / self.examples for name in names} if self.examples else {}
        rates = {"tokens_per_second": self.tokens / seconds}
        return means | rates | {"undecided": int(self.undecided), "skipped": int(self.skipped)}


class TrainLog:
    """Writes on the main process alone; a context manager.

    start: the step that the run goes on from; later lines of an interrupted run are dropped."""

    def __init__(self, output: Path, start: int, total: int, steps_per_epoch: int, main: bool) -> None:
        self._path, self._steps_per_epoch, self._main = output / "log.jsonl", steps_per_epoch, main
        self._window: list[Tally] = []
        self._since = time.perf_counter()
        self._board = self._bar = None
        if main:
            rows = read_jsonl(self._path) if self._path.exists() else []
            write_jsonl(self._path, [row for row in rows if row["step"] <= start])
            self._board = _tensorboard(output)
            self._bar = _progress(start, total)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        for open_one in (self._board, self._bar):
            if open_one is not None:
                open_one.close()

    def step(self, tally: Tally) -> None:
        """Count a step in."""
        self._window.append(tally)
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, **facts: float) -> None:
        """A line about all steps since the last one, beside `facts`."""
        now = time.perf_counter()
        row = Tally(*map(sum, zip(*self._window, strict=True))).row(now - self._since)
        self._window, self._since = [], now
        self._write(step, row | facts)
        if self._bar is not None:
            shown = ("loss", "margin", "accuracy", "tokens_per_second")
            self._bar.set_postfix({name: f"{row[name]:.3g}" for name in shown if name in row})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of its own; the time that it took is not that of training."""
        self._write(step, {f"eval_{name}": value for name, value in metrics.items()})
        self._since = time.perf_counter()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._main:
            return
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": step / self._steps_per_epoch, **known}) + "\n")
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _LOG.info("writing log.jsonl; TensorBoard is not installed")
        return None
    _LOG.info("writing log.jsonl and, into tensorboard/, for TensorBoard")
    return SummaryWriter(output / "tensorboard")


def _progress(start: int, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=start, desc="training", unit="step", disable=None)
