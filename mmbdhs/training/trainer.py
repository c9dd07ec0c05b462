"""The reference trainer: one plain loop around sampling, log-probabilities and losses.

An optimiser step takes `batch_size` examples. A source (`pair_sources`) turns each into candidate responses,
`response_logps` computes their log-probabilities, and an objective (`objectives`) makes losses of these. The gradient
is that of the mean loss over all examples of the step that had something to learn from; it does not depend on how the
examples are cut into micro-batches or divided among processes.

    accelerate launch --multi_gpu --num_processes 2 train.py

or `torchrun --nproc-per-node 2 train.py` trains on several devices, or in several CPU processes on a machine without
accelerators. Each process holds the whole model, or a shard of it with `shard` (FSDP2). Sampling, evaluation and the
image encoder gather a sharded model.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Subset

from mmbdhs.checks import instance
from mmbdhs.data import is_null, key_address, usable_rows
from mmbdhs.runs import Signals, caught_signals
from mmbdhs.training.checkpoints import checkpoint_path, load_state, prune, save_model
from mmbdhs.training.config import SCHEDULES, TrainConfig
from mmbdhs.training.learner import Learner, NonFiniteLossError, make_dummy_example
from mmbdhs.training.log import StepMetrics, TrainLog, counts
from mmbdhs.training.objectives import Objective, needs_reference, takes_stored_reference
from mmbdhs.training.pair_sources import PairSource, TrainingExample, needed_columns
from mmbdhs.training.run_folder import run_folder
from mmbdhs.training.run_identity import run_identity
from mmbdhs.training.sharding import ReplicatedModel, ShardedModel, gather_full, shard_like
from mmbdhs.training.trainable import make_trainable, parameter_groups, trained_parameters
from mmbdhs.vlm import VLM, Processor, text_rule

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOG = logging.getLogger("mmbdhs")

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


class TrainResult(NamedTuple):
    """The result of `train`.

    model: the trained model, with adapters around it if the settings asked for them.
    steps: number of optimiser steps done, including those of earlier runs that were resumed.
    folder: the folder of the saved model and processor.
    interrupted: the signal that ended the run early, or None.
    """

    model: nn.Module
    steps: int
    folder: Path
    interrupted: signal.Signals | None


def train(
    model: nn.Module,
    processor: Processor,
    records: Sequence[Mapping[str, Any]],
    source: PairSource,
    objective: Objective,
    config: TrainConfig,
    *,
    reference: nn.Module | None = None,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Align a model with preference pairs. The model is trained in place.

    model, processor: a vision-language model of `transformers`, or a PEFT model around one, and its processor.
    records: in TRL's vision preference layout, as `mmbdhs.data.open_records` makes them of data in any other, with the
        columns that `source` needs.
    source: makes the candidate responses of each example, see `pair_sources`.
    objective: makes the losses of their log-probabilities, see `objectives`.
    config: all other settings.
    reference: the model that the policy is compared with. None: the policy without its adapters, or a frozen copy of
        the policy as it is now, made only if the objective needs one. With `config.shard` both models stay sharded.
    evaluate: a function of the model and the number of steps that returns numbers to log. It is called on the main
        process every `config.eval_steps` and at the end.

    A SIGTERM or SIGINT ends the run with a checkpoint after the current step. A run that is resumed from a checkpoint
    ends with the weights of a run that was never interrupted, on a CPU bit for bit: order, dropout and samples are
    drawn by (seed, step, example), not from a generator's state.

    Raises ValueError for records, source, model or config that do not fit, naming the row or the argument,
    NonFiniteLossError at NaN or infinite numbers, and OSError where a checkpoint cannot be written.
    """
    _check_parts(records, source, objective, config)
    accelerator = _accelerator(config)
    text_rule(VLM.of(model), processor)  # refuses a processor that does not fit the model before anything runs
    rows = usable_rows(records, needed_columns(source), config.on_error)
    identity = run_identity(model, reference, records, source, objective, config)
    with run_folder(Path(config.output), identity, config.resume, accelerator.is_main_process) as checkpoint:
        examples = Subset(cast("Any", records), rows)
        parts = processor, examples, source, objective, config, reference
        run = _Run(accelerator, _learner(accelerator, model, *parts), records, rows, config)
        if checkpoint:
            run.resume(checkpoint)
        return run.train(evaluate)


def _check_parts(records: Any, source: Any, objective: Any, config: Any) -> None:
    """Raise TypeError for parts of another kind, and say what to pass."""
    if not hasattr(records, "__len__") or not hasattr(records, "__getitem__") or isinstance(records, (str, Mapping)):
        raise TypeError(f"records: needs a list or a dataset with a length, got {type(records).__name__}")
    if not callable(source) or isinstance(source, type):
        raise TypeError(f"source: needs an object such as StoredSource(), got {source!r}")
    if not callable(objective):
        raise TypeError(f"objective: needs an object such as pairwise(dpo_loss), got {objective!r}")
    if "policy_chosen_logps" in inspect.signature(objective).parameters:
        name = getattr(objective, "__name__", "loss")
        raise TypeError(f"objective: needs an object such as pairwise({name}), got the loss {name} itself")
    instance("config", config, TrainConfig)


def _learner(
    accelerator: Accelerator,
    model: nn.Module,
    processor: Processor,
    examples: Any,
    source: PairSource,
    objective: Objective,
    config: TrainConfig,
    reference: nn.Module | None,
) -> Learner:
    """The learner of a run, with the model prepared for training and placed on the devices."""
    if next(model.parameters()).device != accelerator.device:
        model.to(accelerator.device)
    model = make_trainable(model, config)
    all_stored = takes_stored_reference(objective) and _all_stored(source, examples)
    if reference is None and needs_reference(objective) and not all_stored and not hasattr(model, "disable_adapter"):
        reference = _frozen_copy(model)
    learner = Learner(
        policy=ReplicatedModel(model),
        processor=processor,
        source=source,
        objective=objective,
        reference=None if reference is None else ReplicatedModel(reference),
        config=config,
        autocast=accelerator.autocast,
        backward=accelerator.backward,
    )
    return _distributed(learner, all_stored, examples) if accelerator.num_processes > 1 else learner


def _accelerator(config: TrainConfig) -> Accelerator:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("train: needs the extra 'train': pip install 'mmbdhs[train]'") from error
    # Without cpu=True, Accelerate takes each process on a machine without accelerators for the only one.
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.accelerator.is_available())
    accelerator.gradient_accumulation_steps = 1  # the trainer counts micro-batches, whatever the launcher was told
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerate: needs a launcher that starts processes with the whole model each, got {kind}. "
            "To shard the model, set `shard` of TrainConfig"
        )
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("shard: needs several processes, got one. Start them with accelerate launch or torchrun")
    return accelerator


def _all_stored(source: PairSource, records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the source passes on the reference's log-probabilities and all records have them."""
    return getattr(source, "stored_reference", False) and all(
        record.get("reference_logps") is not None for record in records
    )


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Deep-copy the trained parameters as a frozen reference, which shares the frozen parameters with the model."""
    _LOG.info("keeping a frozen copy of the model as the reference")
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _distributed(learner: Learner, all_stored: bool, records: Iterable[Mapping[str, Any]]) -> Learner:
    """The learner with rank 0's trained parameters on all processes, and sharded if its config says so."""
    for parameter in trained_parameters(learner.policy.model).values():
        distributed.broadcast(parameter.detach(), src=0)  # the initial adapters may differ between ranks
    if not learner.config.shard:
        return learner
    models = [one.model for one in (learner.policy, learner.reference) if one]
    dummy = make_dummy_example(models, learner.processor, records)
    dummy = dummy._replace(reference_logps=(0.0,) if all_stored else None)
    policy = ShardedModel(learner.policy.model)
    reference = learner.reference and ShardedModel(learner.reference.model)
    return replace(learner, policy=policy, reference=reference, stored_reference=all_stored, dummy_example=dummy)


@dataclass
class _Run:
    """The state of a run.

    rows: numbers of the records that are trained on.
    step: number of optimiser steps that are done.
    """

    accelerator: Accelerator
    learner: Learner
    records: Sequence[Mapping[str, Any]]
    rows: list[int]
    config: TrainConfig
    step: int = 0

    def __post_init__(self) -> None:
        config, model = self.config, self.learner.policy.model
        self.output = Path(config.output)
        self.steps_per_epoch = math.ceil(len(self.rows) / config.batch_size)
        self.total = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total = min(self.total, config.max_steps)
        self.trained = trained_parameters(model)
        optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay, fused=True)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def train(self, evaluate: Evaluate | None) -> TrainResult:
        """Train to the end or to a signal."""
        config, is_main, stopped = self.config, self.accelerator.is_main_process, None
        with (
            caught_signals(signal.SIGTERM, signal.SIGINT) as received,
            TrainLog(self.output, self.step, self.total, self.steps_per_epoch, is_main) as log,
        ):
            while self.step < self.total and not stopped:
                metrics, facts, stopped = self._train_step(received)
                log.add_step(metrics)
                if self._is_due(config.log_steps) or stopped:
                    log.write(self.step, **facts)
                if evaluate is not None and self._is_due(config.eval_steps):
                    self._evaluate(evaluate, log)
                if stopped or (config.save_steps and self.step % config.save_steps == 0):
                    self._save_checkpoint()
        folder = checkpoint_path(self.output, self.step) if stopped else self.output / "final"
        if not stopped:
            self._save(folder)
        return TrainResult(self.learner.policy.model, self.step, folder, stopped)

    def _is_due(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and at the end, is to be done now."""
        return self.step == self.total or (interval > 0 and self.step % interval == 0)

    def _train_step(self, received: Signals) -> tuple[StepMetrics, dict[str, float], signal.Signals | None]:
        """Take one optimiser step. Returns its metrics, its learning rate and gradient norm, and a signal that any
        process has received."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # Dropout is drawn by address too, so that a resumed run needs no generator's state.
        torch.manual_seed(key_address(f"train {self.config.seed} {self.step} {rank}"))
        batch, size = self._batch(), self.config.micro_batch_size
        share, longest_share = batch[rank::processes], math.ceil(len(batch) / processes)
        sums = counts()
        for begin in range(0, longest_share, size):
            sums += self.learner.accumulate_gradients(self.step, share[begin : begin + size])
        metrics, stopped = self._reduce(sums, received)
        factor = rate_factor(self.step, self.total, self.config)
        facts = {"learning_rate": self.peak_rates[0] * factor}
        if metrics.examples:
            facts["grad_norm"] = self._optimizer_step(metrics.examples, factor)
        self.step += 1
        return metrics, facts, stopped

    def _reduce(self, sums: Tensor, received: Signals) -> tuple[StepMetrics, signal.Signals | None]:
        """Sum the metrics over all processes, and share a signal that any of them has received."""
        number = torch.tensor([float(received[-1]) if received else 0.0], dtype=sums.dtype)
        row = torch.cat([sums, number])[None]
        if self.accelerator.num_processes > 1:
            row = self.accelerator.gather(row.to(self.accelerator.device)).cpu()
        metrics = StepMetrics(*row[:, :-1].sum(dim=0).tolist())
        return metrics, signal.Signals(int(row[:, -1].max())) if row[:, -1].any() else None

    def _batch(self) -> list[TrainingExample]:
        """The examples of the next optimiser step, over all processes."""
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        order = _epoch_order(len(self.rows), self.config.seed, epoch)
        size = self.config.batch_size
        rows = [self.rows[index] for index in order[batch * size : (batch + 1) * size]]
        return [TrainingExample(record := self.records[row], _key(record, row), epoch) for row in rows]

    def _optimizer_step(self, examples: float, factor: float) -> float:
        """Divide the accumulated gradient by the number of examples, clip it and step. Returns its norm."""
        parameters = list(self.trained.values())
        for parameter in parameters:
            if parameter.grad is None:  # an expert that got no token on this process
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= examples
        self.learner.policy.sum_gradients(parameters)
        norm = float(self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # the scaler of float16 skips such steps
            raise NonFiniteLossError(f"gradient of step {self.step}: needs finite numbers, got the norm {norm}")
        for group, rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _evaluate(self, evaluate: Evaluate, log: TrainLog) -> None:
        policy = self.learner.policy
        with policy.full_parameters():
            if self.accelerator.is_main_process:
                with torch.no_grad(), VLM.of(policy.model).evaluation_mode():
                    log.write_evaluation(self.step, evaluate(policy.model, self.step))
            self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "trained": gather_full(self.trained),
            "optimizer": gather_full(self.optimizer.state_dict()),
            "scaler": scaler.state_dict() if scaler else {},
        }
        self._save(checkpoint_path(self.output, self.step), state)

    def _save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        model, processor = self.learner.policy.model, self.learner.processor
        weights = gather_full(model.state_dict(keep_vars=True))
        if self.accelerator.is_main_process:
            save_model(folder, model, processor, weights, state)
            prune(self.output, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Restore weights, optimiser and step from a checkpoint."""
        state = load_state(folder)
        if state["trained"].keys() != self.trained.keys():
            raise ValueError(f"resume: needs a model with the {len(state['trained'])} trained parameters of {folder}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(shard_like(state["trained"][name], parameter))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = shard_like(moments[name], parameters[number])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        _LOG.info("resuming from %s", folder)


def _key(record: Mapping[str, Any], row: int) -> Any:
    """The record's key; its row number as a string where it has none."""
    return str(row) if is_null(key := record.get("key")) else key


@lru_cache(maxsize=1)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(key_address(f"order {seed} {epoch}"))
    return torch.randperm(count, generator=generator).tolist()


def rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """The factor of the learning rates in a step, counted from 0.

    It rises linearly to 1 in the last step of the warm-up, then follows `config.schedule`.
    """
    warm = math.ceil(config.warmup_ratio * total)
    if step < warm:
        return (step + 1) / warm
    return SCHEDULES[config.schedule]((step - warm) / max(total - warm, 1))
