"""The record of a training run: a progress bar, log.jsonl, and TensorBoard where it is installed."""

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

from mmbdhs.data import write_jsonl
from mmbdhs.losses import PreferenceLoss

_LOG = logging.getLogger("mmbdhs")


class StepMetrics(NamedTuple):
    """Sums over the examples of one or more optimiser steps.

    examples: number of examples with a loss.
    loss, nll_loss, margin, accuracy, chosen_reward, rejected_reward: sums over these examples; NaN where an objective
        has no rewards. nll_loss is the negative log-likelihood per token of the chosen response.
    tokens: prompt and response tokens of the policy's forward passes.
    undecided: number of examples for which the source had nothing to learn from.
    skipped: number of examples that could not be read.
    identical: number of examples in which the other responses say what the chosen one says.
    garbled: number of examples with a response that is no language (see `pair_faults`).
    """

    examples: float = 0.0
    loss: float = 0.0
    nll_loss: float = 0.0
    margin: float = 0.0
    accuracy: float = 0.0
    chosen_reward: float = 0.0
    rejected_reward: float = 0.0
    tokens: float = 0.0
    undecided: float = 0.0
    skipped: float = 0.0
    identical: float = 0.0
    garbled: float = 0.0

    def averages(self, seconds: float) -> dict[str, float]:
        """Means per example, tokens per second, and the counts of examples that were left out or are of no use."""
        means = {name: getattr(self, name) / self.examples for name in _MEANS} if self.examples else {}
        counts = {name: int(getattr(self, name)) for name in _COUNTS}
        return means | {"tokens_per_second": self.tokens / seconds} | counts


_MEANS = ("loss", "nll_loss", "margin", "accuracy", "chosen_reward", "rejected_reward")
_COUNTS = ("undecided", "skipped", "identical", "garbled")


def metric_sums(result: PreferenceLoss, nll_losses: Tensor, tokens: int) -> Tensor:
    """The fields of `StepMetrics` for B examples with a loss, as a float64 tensor on the CPU that can be added.

    nll_losses: [B], the negative log-likelihood per token of the chosen responses.
    """
    losses, chosen, rejected = result
    margins = chosen - rejected
    accuracy = torch.where(margins.isnan(), margins, (margins > 0).to(margins.dtype))
    columns = torch.stack([losses.detach(), nll_losses.detach(), margins, accuracy, chosen, rejected])
    sums = dict(zip(_MEANS, columns.cpu().double().sum(dim=1).tolist(), strict=True))
    return counts(examples=len(losses), tokens=tokens, **sums)


def counts(**numbers: float) -> Tensor:
    """Some fields of `StepMetrics`, the others 0, as a float64 tensor on the CPU that can be added."""
    return torch.tensor(StepMetrics(**numbers), dtype=torch.float64)


class TrainLog:
    """A context manager that records a run. Only the main process writes.

    output: folder of log.jsonl and tensorboard/.
    start: number of optimiser steps that are already done; lines about later steps, left by an interrupted run, are
        dropped.
    total: number of optimiser steps of the whole run.
    steps_per_epoch: optimiser steps per epoch.
    is_main: whether this is the main process.
    """

    def __init__(self, output: Path, start: int, total: int, steps_per_epoch: int, is_main: bool) -> None:
        self._path, self._steps_per_epoch, self._is_main = output / "log.jsonl", steps_per_epoch, is_main
        self._unwritten: list[StepMetrics] = []
        self._since = time.perf_counter()
        self._tensorboard = self._bar = None
        if is_main:
            rows = _whole_rows(self._path) if self._path.exists() else []
            write_jsonl(self._path, [row for row in rows if row["step"] <= start])
            self._tensorboard = _tensorboard_writer(output)
            self._bar = _progress_bar(start, total)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        for display in (self._tensorboard, self._bar):
            if display is not None:
                display.close()

    def add_step(self, metrics: StepMetrics) -> None:
        """Count one optimiser step."""
        self._unwritten.append(metrics)
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, **facts: float) -> None:
        """Write a line that averages all steps since the last line and adds `facts`."""
        now = time.perf_counter()
        row = StepMetrics(*map(sum, zip(*self._unwritten, strict=True))).averages(now - self._since)
        self._unwritten, self._since = [], now
        self._write_row(step, row | facts)
        if self._bar is not None:
            shown = ("loss", "margin", "accuracy", "tokens_per_second")
            self._bar.set_postfix({name: f"{row[name]:.3g}" for name in shown if name in row})

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line with the numbers of an evaluation. Its time does not count as training time."""
        self._write_row(step, {f"eval_{name}": value for name, value in metrics.items()})
        self._since = time.perf_counter()

    def _write_row(self, step: int, values: dict[str, float]) -> None:
        if not self._is_main:
            return
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": step / self._steps_per_epoch, **known}) + "\n")
        if self._tensorboard is not None:
            for name, value in known.items():
                self._tensorboard.add_scalar(name, value, step)


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without a last line that was cut short when the process or the machine stopped."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: needs one JSON object a line, line {number} is none ({error})") from error
            _LOG.warning("%s: dropped its last line, which is cut short", path)
    return rows


def _tensorboard_writer(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _LOG.info("writing log.jsonl; TensorBoard is not installed")
        return None
    _LOG.info("writing log.jsonl and, into tensorboard/, for TensorBoard")
    return SummaryWriter(output / "tensorboard")


def _progress_bar(start: int, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=start, desc="training", unit="step", disable=None)
