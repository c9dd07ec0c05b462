"""The reference trainer: one plain loop around sampling, log-probabilities and losses.

An optimiser step takes `per_device_train_batch_size` × `gradient_accumulation_steps` examples of each process. A source
(`pair_sources`) turns each into candidate responses, `response_logps` computes their log-probabilities, and an
objective (`objectives`) makes losses of these. The gradient is that of the mean loss over all examples of the step that
had something to learn from; it does not depend on how the examples are cut into micro-batches or divided among
processes.

    accelerate launch --multi_gpu --num_processes 2 train.py

or `torchrun --nproc-per-node 2 train.py` trains on several devices, or in several CPU processes on a machine without
accelerators. Each process holds the whole model, or a shard of it with `shard` (FSDP2). Sampling, evaluation and the
image encoder gather a sharded model.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.data import key_address
from mmbdhs.runs import Signals, caught_signals
from mmbdhs.sampling import ReaderPool
from mmbdhs.training.batches import (
    Batch,
    Batches,
    Position,
    ReadAhead,
    Shares,
    UnreadExample,
    held_out_examples,
    make_batches,
)
from mmbdhs.training.checkpoints import checkpoint_path, load_state, prune, save_model
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.hub import HubModel, model_card
from mmbdhs.training.learner import KLBoundError, Learner, NonFiniteLossError, Prepared
from mmbdhs.training.log import StepMetrics, TrainLog, counts, start_trackers
from mmbdhs.training.objectives import AnyObjective, has_own_forward
from mmbdhs.training.pair_sources import PairSource, RewardError, needed_columns
from mmbdhs.training.part_checks import check_parts
from mmbdhs.training.preparation import make_accelerator, make_learner
from mmbdhs.training.run_folder import run_folder
from mmbdhs.training.run_identity import run_identity
from mmbdhs.training.schedule import rate_factors, warn_of_small_rates
from mmbdhs.training.sharding import gather_full, shard_like
from mmbdhs.training.trainable import parameter_groups, trained_parameters
from mmbdhs.vlm import VLM, Processor, shared_processor, text_rule

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
    records: Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]],
    source: PairSource,
    objective: AnyObjective,
    config: TrainConfig,
    *,
    reference: nn.Module | None = None,
    eval_records: Sequence[Mapping[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Align a model with preference pairs. The model is trained in place.

    This loop exists for what a Trainer of transformers does not have: runs that resume to the bit, responses sampled
    from the policy as it learns, and sharded models that sample. For stored pairs alone, `mmbdhs.trl.PackedDPOTrainer`
    has the same speed and all that TRL offers.

    model, processor: a vision-language model of `transformers`, or a PEFT model around one, and its processor.
    records: in TRL's vision preference layout, as `mmbdhs.data.open_records` makes them of data in any other, with the
        columns that `source` needs. A sequence, such as a datasets.Dataset, is shuffled in every epoch. A stream, such
        as a datasets.IterableDataset, is taken in its own order and begins again at its end; it needs
        `config.max_steps`. No image is decoded before the step that needs it is near.
    source: makes the candidate responses of each example, see `pair_sources`.
    objective: makes the losses of their log-probabilities, see `objectives`.
    config: all other settings.
    reference: the model that the policy is compared with. None: the policy without its adapters, or a frozen copy of
        the policy as it is now, made only if the objective needs one. With `config.shard` both models stay sharded.
    eval_records: held-out records, whose loss and rewards are logged every `config.eval_steps` and at the end. Source
        and objective are those of training, with the random draws of the first epoch.
    evaluate: a function of the model and the number of steps that returns more numbers to log then. It is called on the
        main process.

    A SIGTERM or SIGINT ends the run with a checkpoint after the current step. A run that is resumed from a checkpoint
    ends with the weights of a run that was never interrupted, on a CPU bit for bit: order, dropout and samples are
    drawn by (seed, step, example), not from a generator's state.

    Raises ValueError for records, source, model or config that do not fit, naming the row or the argument,
    NonFiniteLossError at NaN or infinite numbers, RewardError at rewards of that kind, KLBoundError for a policy too
    far from its reference, and OSError where a checkpoint cannot be written. Before an error of the middle three, a
    single process saves a checkpoint of the state before the step, unless that has been lost.
    """
    check_parts(records, eval_records, source, objective, config)
    accelerator = make_accelerator(config)
    text_rule(VLM.of(model), processor)  # refuses a processor that does not fit the model before anything runs
    batch_size = config.per_device_train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    columns = needed_columns(source)
    shares = Shares(batch_size, accelerator.process_index, accelerator.num_processes)
    batches = make_batches(records, columns, config.on_error, config.seed, shares)
    held_out = [] if eval_records is None else held_out_examples(eval_records, columns, config.on_error)
    identity = run_identity(model, reference, batches.data, source, objective, config, batch_size)
    where = Path(config.output_dir), identity, config.resume_from_checkpoint
    with run_folder(*where, accelerator.is_main_process) as checkpoint:
        hub = HubModel.create(config) if config.push_to_hub and accelerator.is_main_process else None
        parts = processor, batches, source, objective, config, reference
        learner = make_learner(accelerator, model, *parts)
        run = _Run(accelerator, learner, batches, shares, held_out, config, identity)
        if checkpoint:
            run.resume(checkpoint)
        else:
            run.begin()
        result = run.train(evaluate)
        if hub and not result.interrupted:
            hub.upload(result.folder)
        return result


@dataclass
class _Run:
    """The state of a run.

    held_out: examples that are not trained on; empty for none.
    identity: from `run_identity`.
    step: number of optimiser steps that are done.
    position: where the next step's examples begin.
    source_state: what the source found before the first step.
    is_between_steps: whether the weights are those after `step` steps.
    """

    accelerator: Accelerator
    learner: Learner
    batches: Batches
    shares: Shares
    held_out: list[UnreadExample]
    config: TrainConfig
    identity: dict[str, Any]
    step: int = 0
    position: Position = (0, 0)
    source_state: dict[str, Any] | None = None
    is_between_steps: bool = True

    def __post_init__(self) -> None:
        config, model = self.config, self.learner.policy.model
        self.output = Path(config.output_dir)
        self.steps_per_epoch = self.batches.steps_per_epoch or config.max_steps
        self.total = config.num_train_epochs * self.steps_per_epoch if config.max_steps == -1 else config.max_steps
        self.rate_factor = rate_factors(
            config.lr_scheduler_type, config.warmup_steps, self.total, config.lr_scheduler_kwargs
        )
        self.trained = trained_parameters(model)
        optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay, fused=True)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def train(self, evaluate: Evaluate | None) -> TrainResult:
        """Train to the end or to a signal."""
        config, stopped = self.config, None
        if not config.shard:
            warn_of_small_rates(self.learner.policy.model, self.peak_rates[0], self.rate_factor, self.total)
        start_trackers(self.accelerator, config, self.step)
        with (
            caught_signals(signal.SIGTERM, signal.SIGINT) as received,
            TrainLog(self.accelerator, self.output, self.step, self.total, self.steps_per_epoch) as log,
            ReaderPool(config.dataloader_num_workers, self.accelerator.device) as pool,
        ):
            examples = self._read_ahead(pool)
            while self.step < self.total and not stopped:
                with self._saved_if_it_fails(log):
                    metrics, facts, stopped = self._train_step(examples, received)
                log.add_step(metrics)
                if self._is_due(config.logging_steps) or stopped:
                    log.write(self.step, **facts)
                if (evaluate or self.held_out) and self._is_due(config.eval_steps):
                    log.write_evaluation(self.step, self._held_out_metrics(examples) | self._evaluated(evaluate))
                if stopped or (config.save_steps and self.step % config.save_steps == 0):
                    self._save_checkpoint(log)
        folder = checkpoint_path(self.output, self.step) if stopped else self.output / "final"
        if not stopped:
            self._save(folder, log)
        return TrainResult(self.learner.policy.model, self.step, folder, stopped)

    def _is_due(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and at the end, is to be done now."""
        return self.step == self.total or (interval > 0 and self.step % interval == 0)

    def _read_ahead(self, pool: ReaderPool) -> ReadAhead[Prepared]:
        """The examples of the steps that are left."""
        _LOG.info("%d thread(s) read ahead", pool.num_workers)
        learner = self.learner
        if pool.num_workers:
            learner = replace(learner, processor=shared_processor(learner.processor))
        return ReadAhead(islice(self.batches.begin(self.position), self.total - self.step), learner.prepare, pool)

    def _train_step(
        self, examples: ReadAhead[Prepared], received: Signals
    ) -> tuple[StepMetrics, dict[str, float], signal.Signals | None]:
        """Take one optimiser step. Returns its metrics, its learning rate and gradient norm, and a signal that any
        process has received."""
        batch, prepared = examples.next_batch()
        # Dropout is drawn by address too, so that a resumed run needs no generator's state.
        torch.manual_seed(key_address(f"train {self.config.seed} {self.step} {self.shares.process}"))
        factor = self.rate_factor(self.step)
        facts, stopped = {"learning_rate": self.peak_rates[0] * factor}, None
        parts: list[StepMetrics] = []
        for micro_batches in self._passes(batch, prepared):
            sums = counts()
            for one in micro_batches:
                sums += self.learner.accumulate_gradients(self.step, one)
            metrics, signal_now = self._reduce(sums, received)
            parts, stopped = [*parts, metrics], stopped or signal_now
            if self.is_between_steps:
                self.learner.require_near(self.step, metrics)
            if metrics.examples:
                facts["grad_norm"] = self._optimizer_step(metrics.examples, factor)
            self.is_between_steps = False
        self.step, self.position, self.is_between_steps = self.step + 1, batch.position, True
        return StepMetrics(*map(sum, zip(*parts, strict=True))), facts, stopped

    def _passes(self, batch: Batch, prepared: Sequence[Callable[[], Prepared]]) -> Iterator[Iterable[list[Any]]]:
        """The micro-batches of each optimiser step that learns from the batch: one, unless the objective says more."""
        size, longest = self.config.per_device_train_batch_size, self.shares.longest(batch.size)
        cuts = (prepared[begin : begin + size] for begin in range(0, longest, size))
        micro_batches = ([prepared_example() for prepared_example in cut] for cut in cuts)
        objective = self.learner.objective
        if not has_own_forward(objective) or not objective.fixed_first:
            yield micro_batches
            return
        fixed = self.learner.with_targets([self.learner.outcomes(one) for one in micro_batches], self._total)
        for number in range(objective.passes):
            yield [[one if number == 0 else one.uncounted() for one in batch] for batch in fixed]

    def _total(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self._of_processes(sums).sum(dim=0)

    def _of_processes(self, values: Tensor) -> Tensor:
        """The tensor of each process as a row, on the CPU."""
        if self.accelerator.num_processes == 1:
            return values[None]
        return self.accelerator.gather(values[None].to(self.accelerator.device)).cpu()

    def _reduce(self, sums: Tensor, received: Signals | None = None) -> tuple[StepMetrics, signal.Signals | None]:
        """Sum the metrics over all processes, and share a signal that any of them has received."""
        number = torch.tensor([float(received[-1]) if received else 0.0], dtype=sums.dtype)
        rows = self._of_processes(torch.cat([sums, number]))
        metrics = StepMetrics(*rows[:, :-1].sum(dim=0).tolist())
        return metrics, signal.Signals(int(rows[:, -1].max())) if rows[:, -1].any() else None

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

    def _held_out_metrics(self, examples: ReadAhead[Prepared]) -> dict[str, float]:
        """Loss and rewards of the held-out records, over all processes."""
        if not self.held_out:
            return {}
        learner, size = replace(self.learner, backward=_no_backward), self.config.per_device_train_batch_size
        sums, prepared = counts(), examples.others(self.shares.own(self.held_out))
        with torch.no_grad(), VLM.of(self.learner.policy.model).evaluation_mode():
            for _ in range(0, self.shares.longest(len(self.held_out)), size):
                sums += learner.accumulate_gradients(self.step, list(islice(prepared, size)))
        return self._reduce(sums)[0].averages()

    def _evaluated(self, evaluate: Evaluate | None) -> dict[str, float]:
        """The numbers of the user's function; empty on all but the main process."""
        policy = self.learner.policy
        found: dict[str, float] = {}
        if evaluate is None:
            return found
        with policy.full_parameters():
            if self.accelerator.is_main_process:
                with torch.no_grad(), VLM.of(policy.model).evaluation_mode():
                    found = dict(evaluate(policy.model, self.step))
            self.accelerator.wait_for_everyone()
        return found

    @contextmanager
    def _saved_if_it_fails(self, log: TrainLog) -> Iterator[None]:
        """Saves the state before a step whose numbers end the run, as far as no other process has to take part."""
        try:
            yield
        except (NonFiniteLossError, KLBoundError, RewardError):
            alone = self.accelerator.num_processes == 1
            if alone and self.step and self.is_between_steps and not checkpoint_path(self.output, self.step).exists():
                self._save_checkpoint(log)
            raise

    def begin(self) -> None:
        """Let the source do what it does once before the first step."""
        if (begin := getattr(self.learner.source, "begin", None)) is None:
            return
        policy, found = self.learner.policy, [None]
        with policy.full_parameters(), torch.no_grad(), VLM.of(policy.model).evaluation_mode():
            if self.accelerator.is_main_process:
                found = [begin(policy.model, self.learner.processor, self.batches.records())]
            if self.accelerator.num_processes > 1:
                from accelerate.utils import broadcast_object_list

                broadcast_object_list(found)
        self._resume_source(found[0])

    def _resume_source(self, state: Any) -> None:
        self.source_state = state
        if state is not None:
            source: Any = self.learner.source
            source.resume(state)

    def _save_checkpoint(self, log: TrainLog) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "position": self.position,
            "trained": gather_full(self.trained),
            "optimizer": gather_full(self.optimizer.state_dict()),
            "scaler": scaler.state_dict() if scaler else {},
            "source": self.source_state,
        }
        self._save(checkpoint_path(self.output, self.step), log, state)

    def _save(self, folder: Path, log: TrainLog, state: dict[str, Any] | None = None) -> None:
        model, processor = self.learner.policy.model, self.learner.processor
        weights = gather_full(model.state_dict(keep_vars=True))
        if self.accelerator.is_main_process:
            base = VLM.of(model).model.config._name_or_path
            card = model_card(self.identity, base, hasattr(model, "peft_config"), self.step, log.last)
            objective = self.learner.objective
            head = objective.head if has_own_forward(objective) else None
            save_model(folder, model, processor, weights, card, state, head)
            prune(self.output, self.config.save_total_limit)
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
        self.step, self.position = state["step"], state["position"]
        self._resume_source(state.get("source"))
        _LOG.info("resuming from %s", folder)


def _no_backward(_: Tensor) -> None:
    """In place of the backward pass where there are no gradients."""
