"""The reference trainer: one plain loop around sampling, log-probabilities and losses.

An optimiser step takes `batch_size` examples: a source of pairs (`pair_sources`) turns each into candidate
responses, `response_logps` runs them behind their prompt, an objective (`objectives`) makes losses of their
log-probabilities, and the gradient is that of the mean over all examples of the step that had something to learn from,
however they are cut into micro-batches and split among processes.

    accelerate launch --multi_gpu --num_processes 2 train.py

or `torchrun --nproc-per-node 2 train.py` runs it on several devices, without accelerators in processes of the CPU. Each
has the whole model, or, with `shard`, its part of it (FSDP2); sampling, evaluation and the images' encoder gather it.
"""

from __future__ import annotations

import copy
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Subset

from mmbdhs.data import key_address, usable_rows
from mmbdhs.training.checkpoints import checkpoint_path, checkpoints, load_state, prune, save_model
from mmbdhs.training.config import SCHEDULES, TrainConfig
from mmbdhs.training.learner import Learner, NonFiniteLossError, probed_example
from mmbdhs.training.log import Tally, TrainLog
from mmbdhs.training.objectives import Objective, needs_reference
from mmbdhs.training.pair_sources import PairSource, Visit, columns_of
from mmbdhs.training.sharding import Replicated, Sharded, collected, spread
from mmbdhs.training.trainable import make_trainable, parameter_groups, trained_parameters
from mmbdhs.vlm import VLM

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOG = logging.getLogger("mmbdhs")


class TrainResult(NamedTuple):
    """model: the trained one, with adapters around it if these were asked for. steps: done so far, by earlier runs too.
    folder: where model and processor lie. interrupted: by which signal, or None."""

    model: nn.Module
    steps: int
    folder: Path
    interrupted: signal.Signals | None


def train(
    model: nn.Module,
    processor: Any,
    records: Sequence[Mapping[str, Any]],
    source: PairSource,
    objective: Objective,
    config: TrainConfig,
    *,
    reference: nn.Module | None = None,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
) -> TrainResult:
    """Align a model; it is trained in place.

    records: in TRL's vision preference layout, images as PIL images or paths, with the columns that `source` needs.
    reference: what the policy is compared with; None for the model without its adapters, or else a frozen copy of it as
        it comes in, which is made only if the objective needs one. With `config.shard` both stay sharded.
    evaluate: (model, step) -> numbers to log, on the main process, every `config.eval_steps` and at the end.

    A SIGTERM or SIGINT ends the run behind a checkpoint after the current step. A run that goes on from a checkpoint
    ends with the weights, on a CPU to the bit, of one that was never interrupted: order, dropout and sampling are drawn
    by (seed, step, example), not from a state.

    Raises ValueError for records, source, model or config that do not fit, naming row or argument,
    NonFiniteLossError at NaN or infinite numbers, and OSError where a checkpoint cannot be written.
    """
    output = Path(config.output)
    accelerator = _accelerator(config)
    rows = usable_rows(records, ("images", "prompt", *columns_of(source)), config.on_error)
    found = checkpoints(output)
    if found and not config.resume:
        raise ValueError(f"output: needs a folder without checkpoints, or resume=True, got {found[-1]} in it")
    if next(model.parameters()).device != accelerator.device:
        model.to(accelerator.device)
    model = make_trainable(model, config)
    examples = Subset(records, rows)
    stored = needs_reference(objective) and _all_stored(source, examples)
    if reference is None and needs_reference(objective) and not stored and not hasattr(model, "disable_adapter"):
        reference = _frozen_copy(model)
    learner = Learner(
        Replicated(model),
        processor,
        source,
        objective,
        None if reference is None else Replicated(reference),
        config,
        accelerator.autocast,
        accelerator.backward,
    )
    if accelerator.num_processes > 1:
        _agree(model)
    if config.shard:
        learner = _sharded(learner, stored, examples)
    run = _Run(accelerator, learner, records, rows, config)
    if found:
        run.resume(found[-1])
    return run.go(evaluate)


def _accelerator(config: TrainConfig) -> Accelerator:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("train: needs the extra 'train': pip install 'mmbdhs[train]'") from error
    # Without being told, Accelerate takes the processes of a machine without accelerators for lone ones.
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.accelerator.is_available())
    accelerator.gradient_accumulation_steps = 1  # micro-batches are counted here, whatever the launcher was told
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerate: needs processes with the whole model each, which `shard` of TrainConfig spreads, got {kind}"
        )
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("shard: needs several processes, got one")
    return accelerator


def _all_stored(source: PairSource, records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the reference's log-probabilities lie beside all examples."""
    return getattr(source, "stored_reference", False) and all(
        record.get("reference_logps") is not None for record in records
    )


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Of what is trained; frozen parameters are shared."""
    _LOG.info("keeping a frozen copy of the model as the reference")
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _agree(model: nn.Module) -> None:
    """On the trained parameters of the first process: others may have drawn new adapters differently."""
    for parameter in trained_parameters(model).values():
        distributed.broadcast(parameter.detach(), src=0)


def _sharded(learner: Learner, stored: bool, records: Iterable[Mapping[str, Any]]) -> Learner:
    """With policy and reference spread over the processes."""
    places = learner.policy, learner.reference
    example = probed_example([place.model for place in places if place], learner.processor, records)
    stand_in = example._replace(reference_logps=(0.0,) if stored else None)
    policy, reference = (place and Sharded(place.model) for place in places)
    return replace(learner, policy=policy, reference=reference, stored_reference=stored, stand_in=stand_in)


@dataclass
class _Run:
    """`step` counts the optimiser steps that are done, `rows` are the numbers of the records that are visited."""

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
        self.total = min(config.epochs * self.steps_per_epoch, config.max_steps or math.inf)
        self.trained = trained_parameters(model)
        optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay, fused=True)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def go(self, evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None) -> TrainResult:
        """To the end, or to a signal."""
        config, main, stopped = self.config, self.accelerator.is_main_process, None
        with _signals() as received, TrainLog(self.output, self.step, self.total, self.steps_per_epoch, main) as log:
            while self.step < self.total and not stopped:
                tally, facts, stopped = self._advance(received)
                log.step(tally)
                if self._due(config.log_steps) or stopped:
                    log.write(self.step, **facts)
                if evaluate is not None and self._due(config.eval_steps):
                    self._evaluate(evaluate, log)
                if stopped or (config.save_steps and self.step % config.save_steps == 0):
                    self._checkpoint()
        folder = checkpoint_path(self.output, self.step) if stopped else self.output / "final"
        if not stopped:
            self._save(folder)
        return TrainResult(self.learner.policy.model, self.step, folder, stopped)

    def _due(self, every: int) -> bool:
        return self.step == self.total or (every > 0 and self.step % every == 0)

    def _advance(self, received: list[signal.Signals]) -> tuple[Tally, dict[str, float], signal.Signals | None]:
        """One optimiser step. The signal is what any process has received by its end."""
        rank, size = self.accelerator.process_index, self.config.micro_batch_size
        # Dropout: by address too, so that no generator's state has to outlive a run.
        torch.manual_seed(key_address(f"train {self.config.seed} {self.step} {rank}"))
        visits, processes = self._visits(), self.accelerator.num_processes
        mine, most = visits[rank::processes], math.ceil(len(visits) / processes)
        sums = Tally.left_out(0, 0)
        for begin in range(0, most, size):
            sums += self.learner.learn(self.step, mine[begin : begin + size])
        tally, stopped = self._together(sums, received)
        factor = rate_factor(self.step, self.total, self.config)
        facts = {"learning_rate": self.rates[0] * factor}
        if tally.examples:
            facts["grad_norm"] = self._descend(tally.examples, factor)
        self.step += 1
        return tally, facts, stopped

    def _together(self, sums: Tensor, received: list[signal.Signals]) -> tuple[Tally, signal.Signals | None]:
        """The sums of all processes, and a signal that any of them has received."""
        number = torch.tensor([float(received[-1]) if received else 0.0], dtype=sums.dtype)
        row = torch.cat([sums, number])[None]
        if self.accelerator.num_processes > 1:
            row = self.accelerator.gather(row.to(self.accelerator.device)).cpu()
        tally = Tally(*row[:, :-1].sum(dim=0).tolist())
        return tally, signal.Signals(int(row[:, -1].max())) if row[:, -1].any() else None

    def _visits(self) -> list[Visit]:
        """The examples of the next step."""
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        order = _epoch_order(len(self.rows), self.config.seed, epoch)
        size = self.config.batch_size
        rows = [self.rows[place] for place in order[batch * size : (batch + 1) * size]]
        return [Visit(record := self.records[row], record.get("key", str(row)), epoch) for row in rows]

    def _descend(self, examples: float, factor: float) -> float:
        """A step down the mean loss of so many examples; returns the norm of its gradient."""
        parameters = list(self.trained.values())
        for parameter in parameters:
            if parameter.grad is None:  # an expert that no token went to, on this process
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= examples
        self.learner.policy.sum_gradients(parameters)
        norm = float(self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # a scaler of float16 skips such steps
            raise NonFiniteLossError(f"gradient of step {self.step}: needs finite numbers, got the norm {norm}")
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _evaluate(self, evaluate: Callable[[nn.Module, int], Mapping[str, float]], log: TrainLog) -> None:
        policy = self.learner.policy
        with policy.gathered():
            if self.accelerator.is_main_process:
                with torch.no_grad(), VLM.of(policy.model).evaluation_mode():
                    log.evaluation(self.step, evaluate(policy.model, self.step))
            self.accelerator.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        """What must not change between a run and one that goes on with it."""
        names = ("seed", "batch_size", "lora_rank")
        counts = {"examples": len(self.rows), "parameters": len(self.trained)}
        return counts | {name: getattr(self.config, name) for name in names}

    def _checkpoint(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "identity": self._identity(),
            "trained": collected(self.trained),
            "optimizer": collected(self.optimizer.state_dict()),
            "scaler": scaler.state_dict() if scaler else {},
        }
        self._save(checkpoint_path(self.output, self.step), state)

    def _save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        model, processor = self.learner.policy.model, self.learner.processor
        weights = collected(model.state_dict(keep_vars=True))
        if self.accelerator.is_main_process:
            save_model(folder, model, processor, weights, state)
            prune(self.output, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        state = load_state(folder)
        if state["identity"] != self._identity():
            raise ValueError(f"resume: needs the run of {folder}, {state['identity']}, got {self._identity()}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(spread(state["trained"][name], parameter))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = spread(moments[name], parameters[number])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        _LOG.info("going on from %s", folder)


@lru_cache(maxsize=1)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(key_address(f"order {seed} {epoch}"))
    return torch.randperm(count, generator=generator).tolist()


def rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Of the learning rates in a step, counted from 0: up to 1 at the end of the warm-up, then as the schedule says."""
    warm = math.ceil(config.warmup_ratio * total)
    if step < warm:
        return (step + 1) / warm
    return SCHEDULES[config.schedule]((step - warm) / max(total - warm, 1))


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """SIGTERM and SIGINT as they come in, once each: a second one acts as it would have outside. Only the main thread
    can listen."""
    received: list[signal.Signals] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
