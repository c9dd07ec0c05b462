"""The record of a training run: a progress bar, log.jsonl, and the trackers of Accelerate."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmbdhs.data import write_jsonl
from mmbdhs.logprobs import ResponseLogps
from mmbdhs.losses import PreferenceLoss, sft_loss
from mmbdhs.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOG = logging.getLogger("mmbdhs")


class StepMetrics(NamedTuple):
    """Sums over the examples of one or more optimiser steps.

    examples: number of examples with a loss.
    loss, nll_loss: sums over these examples; nll_loss is the negative log-likelihood per token of the chosen response.
    chosen_logps, rejected_logps: sums of log p of the chosen response, and of the mean of the others.
    chosen_rewards, rejected_rewards, margins, accuracies: sums; NaN where an objective has no rewards.
    rewards, kl, entropy, lengths, clipped: sums of the mean over the responses of each example: the reward as it was
        given, log π/π_ref of the response in nats, the entropy per token in nats, the number of tokens, and the share
        that clipping keeps from learning. NaN where an objective has no such number.
    tokens: prompt and response tokens of the policy's forward passes.
    undecided: number of examples for which the source had nothing to learn from.
    skipped: number of examples that could not be read.
    identical: number of examples in which the other responses say what the chosen one says.
    garbled: number of examples with a response that is no language (see `pair_faults`).
    """

    examples: float = 0.0
    loss: float = 0.0
    nll_loss: float = 0.0
    chosen_logps: float = 0.0
    rejected_logps: float = 0.0
    chosen_rewards: float = 0.0
    rejected_rewards: float = 0.0
    margins: float = 0.0
    accuracies: float = 0.0
    rewards: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    lengths: float = 0.0
    clipped: float = 0.0
    tokens: float = 0.0
    undecided: float = 0.0
    skipped: float = 0.0
    identical: float = 0.0
    garbled: float = 0.0

    def averages(self) -> dict[str, float]:
        """Means per example, by their names in TRL, and the counts of examples that were left out or are of no use.
        Means that do not exist are left out."""
        means = {shown: getattr(self, name) / self.examples for name, shown in _MEANS.items() if self.examples}
        known = {name: value for name, value in means.items() if not math.isnan(value)}
        return known | {name: int(getattr(self, name)) for name in _COUNTS}


_MEANS = {
    "loss": "loss",
    "nll_loss": "nll_loss",
    "chosen_logps": "logps/chosen",
    "rejected_logps": "logps/rejected",
    "chosen_rewards": "rewards/chosen",
    "rejected_rewards": "rewards/rejected",
    "margins": "rewards/margins",
    "accuracies": "rewards/accuracies",
    "rewards": "reward",
    "kl": "kl",
    "entropy": "entropy",
    "lengths": "completions/mean_length",
    "clipped": "clip_ratio",
}
_COUNTS = ("undecided", "skipped", "identical", "garbled")


def metric_sums(losses: Tensor, metrics: Mapping[str, Tensor], tokens: int) -> Tensor:
    """The fields of `StepMetrics` for B examples with a loss, as a float64 tensor on the CPU that can be added.

    metrics: some of the fields -> [B]; those that an objective does not have become NaN.
    """
    columns = {"loss": losses.detach(), **metrics}
    totals = torch.stack([value.to(losses) for value in columns.values()]).cpu().double().sum(dim=1).tolist()
    none = dict.fromkeys(_MEANS, math.nan)
    return counts(**none | dict(zip(columns, totals, strict=True)) | {"examples": len(losses), "tokens": tokens})


def preference_metrics(result: PreferenceLoss, policy: ResponseLogps | None = None) -> dict[str, Tensor]:
    """The metrics of a loss of pairs.

    policy: log-probabilities of the responses under the policy, the chosen response first; None for a reward model.
    """
    _, chosen, rejected = result
    margins = chosen - rejected
    found = {
        "chosen_rewards": chosen,
        "rejected_rewards": rejected,
        "margins": margins,
        "accuracies": torch.where(margins.isnan(), margins, (margins > 0).to(margins.dtype)),
    }
    if policy is None:
        return found
    sums = policy.sums.detach()
    return found | {
        "nll_loss": sft_loss(sums[:, 0], chosen_lengths=policy.lengths[:, 0]),
        "chosen_logps": sums[:, 0],
        "rejected_logps": sums[:, 1:].mean(dim=1),  # NaN without others
    }


def counts(**numbers: float) -> Tensor:
    """Some fields of `StepMetrics`, the others 0, as a float64 tensor on the CPU that can be added."""
    return torch.tensor(StepMetrics(**numbers), dtype=torch.float64)


class TrainLog:
    """A context manager that records a run. Only the main process writes.

    accelerator: has the run's trackers.
    output: folder of log.jsonl.
    start: number of optimiser steps that are already done; lines about later steps, left by an interrupted run, are
        dropped.
    total: number of optimiser steps of the whole run.
    steps_per_epoch: optimiser steps per epoch.
    last: the newest value of every number that was written.
    """

    def __init__(self, accelerator: Accelerator, output: Path, start: int, total: int, steps_per_epoch: float) -> None:
        self._accelerator, self._path, self._steps_per_epoch = accelerator, output / "log.jsonl", steps_per_epoch
        self._unwritten: list[StepMetrics] = []
        self._since = time.perf_counter()
        self._bar = None
        self.last: dict[str, float] = {}
        if accelerator.is_main_process:
            rows = _whole_rows(self._path) if self._path.exists() else []
            write_jsonl(self._path, [row for row in rows if row["step"] <= start])
            names = ", ".join(tracker.name for tracker in accelerator.trackers) or "no tracker"
            _LOG.info("writing log.jsonl, and to %s", names)
            self._bar = _progress_bar(start, total)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                tracker.finish()
        if self._bar is not None:
            self._bar.close()

    def add_step(self, metrics: StepMetrics) -> None:
        """Count one optimiser step."""
        self._unwritten.append(metrics)
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, **facts: float) -> None:
        """Write a line that averages all steps since the last line and adds `facts`."""
        now = time.perf_counter()
        sums = StepMetrics(*map(sum, zip(*self._unwritten, strict=True)))
        row = sums.averages() | {"tokens_per_second": sums.tokens / (now - self._since)}
        self._unwritten, self._since = [], now
        self._write_row(step, row | facts)
        if self._bar is not None:
            shown = ("loss", "rewards/margins", "rewards/accuracies", "reward", "kl", "tokens_per_second")
            self._bar.set_postfix({name: f"{row[name]:.3g}" for name in shown if name in row})

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line with the numbers of an evaluation. Its time does not count as training time."""
        self._write_row(step, {f"eval_{name}": value for name, value in metrics.items()})
        self._since = time.perf_counter()

    def _write_row(self, step: int, values: dict[str, float]) -> None:
        self.last |= values
        if not self._accelerator.is_main_process:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": step / self._steps_per_epoch, **values}) + "\n")
        self._accelerator.log(values, step)


def start_trackers(accelerator: Accelerator, config: TrainConfig, start: int) -> None:
    """Start the trackers that the accelerator was made with, and give them the run's settings.

    start: number of optimiser steps that are already done; TensorBoard hides what was written about later ones.
    """
    if not config.report_to:
        return
    name = config.run_name or Path(config.output_dir).absolute().name
    plain = {
        key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in vars(config).items()
    }
    named = {kind: {"name": name} for kind in ("wandb", "trackio")} | {"mlflow": {"run_name": name}}
    starts = named | {"tensorboard": {"purge_step": start + 1}, "swanlab": {"experiment_name": name}}
    accelerator.init_trackers("mmbdhs", plain, starts)


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


def _progress_bar(start: int, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=start, desc="training", unit="step", disable=None)
