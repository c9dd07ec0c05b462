"""Forward and backward passes of a micro-batch: candidates, log-probabilities, losses, gradients."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmbdhs.data import ChatPrompt, load_images, pair_faults
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs import ResponseLogps, encode_chat, predicted_ids, response_logps
from mmbdhs.sampling import EXAMPLE_ERRORS
from mmbdhs.training.batches import UnreadExample
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.encoding import EncodedExample, ExampleEncoder
from mmbdhs.training.log import StepMetrics, counts, metric_sums, preference_metrics
from mmbdhs.training.objectives import (
    AnyObjective,
    LossWithMetrics,
    Rewards,
    has_own_forward,
    losses_of,
    needs_reference,
    scores_distorted,
)
from mmbdhs.training.pair_sources import Candidates, Found, PairSource, TrainingExample, is_offline
from mmbdhs.training.sharding import DistributedModel
from mmbdhs.vlm import VLM, Processor

_LOG = logging.getLogger("mmbdhs")

T = TypeVar("T")
Run = Callable[[Callable[[nn.Module], Any]], Any]


class NonFiniteLossError(Exception):
    """A log-probability, a loss or a gradient is NaN or infinite; it has not reached the weights or a checkpoint."""


class KLBoundError(Exception):
    """The policy has moved further from its reference than the objective allows."""


@dataclass(frozen=True)
class Outcome:
    """What became of an example before the model runs it. One without `encoded` and `error` teaches nothing.

    key: the example's key.
    counts: in the layout of `StepMetrics`.
    encoded: on the CPU.
    error: why it cannot be used.
    """

    key: int | str
    counts: Tensor
    encoded: EncodedExample | None = None
    error: Exception | None = None

    def uncounted(self) -> Outcome:
        """The same, for a further pass over examples that have been counted."""
        return replace(self, counts=torch.zeros_like(self.counts))


Prepared = TrainingExample | Outcome
"""An example that its source has yet to be asked about, with its images decoded, or what became of it already."""


@dataclass(frozen=True)
class Learner:
    """Adds the gradient of the sum of the examples' losses to the gradients of the policy.

    reference: the reference model; None for the policy without its adapters.
    autocast: makes a context manager for the forward passes of policy and reference.
    backward: called with the loss.
    stored_reference: whether stored log-probabilities are used in place of the reference's.
    dummy_example: run with a loss of 0 where other processes have more examples to run than this one.
    """

    policy: DistributedModel
    processor: Processor
    source: PairSource
    objective: AnyObjective
    reference: DistributedModel | None
    config: TrainConfig
    autocast: Callable[[], AbstractContextManager[Any]]
    backward: Callable[[Tensor], None]
    stored_reference: bool = True
    dummy_example: EncodedExample | None = None

    def prepare(self, unread: UnreadExample) -> Prepared:
        """Do for an example what needs no model, in any thread: read it, decode its images, and for an offline source
        find and encode its candidates."""
        key: int | str = str(unread.row)
        try:
            example = unread.read()
            key = example.key
            record = {**example.record, "images": load_images(example.record["images"])}
            example = replace(example, record=record)
        except EXAMPLE_ERRORS as error:
            return Outcome(key, counts(skipped=1), error=error)
        if not is_offline(self.source):
            return example
        return self._outcome(example, self.source(self.policy.model, self.processor, [example])[0])

    def accumulate_gradients(self, step: int, examples: Sequence[Prepared]) -> Tensor:
        """Run the examples forward and backward, and return their sums in the layout of `StepMetrics`, float64.

        Raises NonFiniteLossError with the examples' keys, and ValueError for an example that cannot be read unless
        config.on_error is "skip".
        """
        outcomes = self.outcomes(examples)
        fixed_first = has_own_forward(self.objective) and self.objective.fixed_first
        if fixed_first and any(one.encoded and one.encoded.targets is None for one in outcomes):
            (outcomes,) = self.with_targets([outcomes], total=lambda sums: sums)
        groups = _group_by_shape([self._placed(one.encoded) for one in outcomes if one.encoded])
        sums = sum((one.counts for one in outcomes), start=counts())
        # A distorted group may take more passes, so sharded processes first run one kind of group, then the other.
        for is_distorted in (False, True):
            alike = [group for group in groups if (group[0].distorted is not None) == is_distorted]
            dummy_passes = self.policy.common_pass_count(len(alike)) - len(alike)
            sums += sum((self._accumulate_group(step, group) for group in alike), start=counts())
            self._run_dummies(dummy_passes, is_distorted)
        return sums

    def require_near(self, step: int, metrics: StepMetrics) -> None:
        """Raise KLBoundError if the policy is further from the reference than the objective allows."""
        bound = self.objective.max_kl if has_own_forward(self.objective) else math.inf
        if metrics.examples and (found := metrics.kl / metrics.examples) > bound:
            raise KLBoundError(
                f"KL divergence from the reference in step {step}: needs at most max_kl={bound:g} nats per response, "
                f"got {found:.4g}. A lower learning rate or a higher beta keeps the policy nearer"
            )

    def _run_dummies(self, count: int, is_distorted: bool) -> None:
        if self.dummy_example is None:
            return
        example = self.dummy_example
        if is_distorted:
            example = example._replace(distorted=example.inputs)
        for _ in range(count):
            if not has_own_forward(self.objective):
                scores = self._policy_and_reference([example])[0]
            else:
                scores = self._run_forward([example])
                if self.objective.needs_reference:
                    self._reference_logps([example])
            self.backward(0 * scores.sums.sum())

    def outcomes(self, examples: Sequence[Prepared]) -> list[Outcome]:
        """What becomes of each example, after the source was asked about those that wait for it.

        Raises ValueError for an example that cannot be used unless config.on_error is "skip".
        """
        waiting = [one for one in examples if isinstance(one, TrainingExample)]
        found = iter(self._candidates(waiting))
        outcomes = [one if isinstance(one, Outcome) else self._outcome(one, next(found)) for one in examples]
        self._require_usable(outcomes)
        return outcomes

    @torch.no_grad()
    def with_targets(
        self, micro_batches: list[list[Outcome]], total: Callable[[Tensor], Tensor]
    ) -> list[list[Outcome]]:
        """Fix what the objective compares with, for a whole batch, by the policy as it is now.

        total: sums a tensor over all processes, which have to call this together.
        """
        objective: Any = self.objective
        encoded = ([one.encoded for one in batch if one.encoded] for batch in micro_batches)
        groups = [group for examples in encoded for group in _group_by_shape(examples)]
        with VLM.of(self.policy.model).held_in_evaluation_mode():
            found = [self._targets([self._placed(one) for one in group]) for group in groups]
        rows = {
            id(example): tree_map(lambda value, row=row: value[row], targets)
            for group, targets in zip(groups, objective.over_batch(found, total), strict=True)
            for row, example in enumerate(group)
        }

        def fixed(one: Outcome) -> Outcome:
            own = one.encoded
            return replace(one, encoded=own and own._replace(targets=rows[id(own)]))

        return [[fixed(one) for one in batch] for batch in micro_batches]

    def _candidates(self, examples: Sequence[TrainingExample]) -> list[Found]:
        model = self.policy.model
        gathered = nullcontext() if is_offline(self.source) else self.policy.full_parameters()
        with gathered, torch.no_grad(), VLM.of(model).evaluation_mode():
            return self.source(model, self.processor, examples) if examples else []

    @property
    def _encoder(self) -> ExampleEncoder:
        model, used = self.policy.model, self.stored_reference
        return ExampleEncoder(model, self.processor, self.source, self.objective, self.config, used)

    def _outcome(self, example: TrainingExample, found: Found) -> Outcome:
        """Encode what a source found, unless it teaches nothing and the settings drop it."""
        if found is None:
            return Outcome(example.key, counts(undecided=1))
        faults = () if isinstance(found, ExampleError) else pair_faults(found.responses)
        sums = counts(**dict.fromkeys(faults, 1))
        compares = isinstance(found, Candidates) and found.response_ids is None  # rewards judge rollouts
        if compares and any(getattr(self.config, f"drop_{name}") for name in faults):
            return Outcome(example.key, sums)
        try:
            if isinstance(found, ExampleError):
                raise found
            return Outcome(example.key, sums, self._encoder.encode(example, found))
        except EXAMPLE_ERRORS as error:
            return Outcome(example.key, sums + counts(skipped=1), error=error)

    def _require_usable(self, outcomes: Sequence[Outcome]) -> None:
        """Raise the error of the first example that cannot be used, or log them all."""
        for one in outcomes:
            if one.error and self.config.on_error == "raise":
                raise ExampleError(f"records: example {one.key!r}: {one.error}") from one.error
            if one.error:
                _LOG.warning("skipped example %r: %s", one.key, one.error)

    def _placed(self, example: EncodedExample) -> EncodedExample:
        """The example with its inputs on the model's device."""
        device = VLM.of(self.policy.model).device
        place = partial(tree_map, lambda value: value.to(device) if isinstance(value, Tensor) else value)
        return example._replace(inputs=place(example.inputs), distorted=place(example.distorted))

    def _accumulate_group(self, step: int, examples: list[EncodedExample]) -> Tensor:
        """Run examples with equally many responses."""
        losses, metrics = self._losses(step, examples)
        _require_finite(f"loss in step {step}", losses, examples)
        self.backward(losses.sum())
        tokens = sum(one.inputs["input_ids"].shape[1] + sum(map(len, one.ids)) for one in examples)
        return metric_sums(losses, metrics, tokens)

    def _losses(self, step: int, examples: list[EncodedExample]) -> LossWithMetrics:
        if has_own_forward(self.objective):
            scores = self._run_forward(examples)
            _require_finite(f"scores in step {step}", scores.sums, examples)
            fixed = _stacked_targets(examples)
            return self.objective(scores, self._targets(examples, scores) if fixed is None else fixed)
        policy, reference = self._policy_and_reference(examples)
        _require_finite(f"log-probabilities in step {step}", policy.sums, examples)
        result = losses_of(self.objective, policy, reference, [one.ids for one in examples])
        return LossWithMetrics(result.losses, preference_metrics(result, policy))

    def _run_forward(self, examples: list[EncodedExample]) -> Any:
        """What an objective with a forward pass of its own reads of the policy."""
        objective: Any = self.objective
        prompts, ids = [one.inputs for one in examples], [one.ids for one in examples]

        def forward(model: nn.Module) -> Any:
            with self.autocast():
                return objective.forward(model, prompts, ids)

        return self.policy.run(forward)

    @torch.no_grad()
    def _targets(self, examples: list[EncodedExample], scores: Any = None) -> Any:
        """What the loss of these examples compares with.

        scores: the policy's, if they are known.
        """
        objective: Any = self.objective
        scores = self._run_forward(examples) if scores is None else scores
        reference = self._reference_logps(examples) if objective.needs_reference else None
        rewards = None
        if (first := examples[0].rewards) is not None:
            device = scores.sums.device
            rewards = Rewards(
                *(torch.tensor([(one.rewards or first)[kind] for one in examples], device=device) for kind in (0, 1))
            )
        return objective.targets(scores, reference, rewards)

    def _policy_and_reference(
        self, examples: list[EncodedExample]
    ) -> tuple[ResponseLogps, ResponseLogps | Tensor | None]:
        """The log-probabilities under the policy, and under the reference if the objective needs them: sums [B, N] in
        nats if they are stored."""
        reference = self._reference_logps(examples) if needs_reference(self.objective) else None
        return self._scored(examples, self.policy.run), reference

    def _scored(self, examples: list[EncodedExample], run: Run) -> ResponseLogps:
        """Log-probabilities under the model that `run` passes on: of the responses, and of its own predictions or the
        chosen response over distorted images."""
        is_predicted = examples[0].distorted is not None and not scores_distorted(self.objective)
        targets = run(partial(self._predicted, examples)) if is_predicted else None
        return run(partial(self._logps, examples, targets))

    @torch.no_grad()
    def _predicted(self, examples: list[EncodedExample], model: nn.Module) -> list[Tensor]:
        """The model's predictions over the distorted images in the places of the chosen responses."""
        prompts, chosen = [one.distorted or {} for one in examples], [one.ids[0] for one in examples]
        with VLM.of(model).held_in_evaluation_mode(), self.autocast():
            return predicted_ids(model, prompts, chosen)

    def _logps(self, examples: list[EncodedExample], targets: list[Tensor] | None, model: nn.Module) -> ResponseLogps:
        """Log-probabilities of the responses and of the targets, or of the chosen response over distorted images."""
        rows = [(one.inputs, one.ids, one.masks) for one in examples]
        if scores_distorted(self.objective):
            rows += [_distorted_row(one) for one in examples]
        prompts, ids, masks = zip(*rows, strict=True)
        with self.autocast():
            found = response_logps(model, prompts, ids, masks=masks, targets=targets)
        return _as_last_column(found, len(examples)) if len(rows) > len(examples) else found

    @torch.no_grad()
    def _reference_logps(self, examples: list[EncodedExample]) -> ResponseLogps | Tensor:
        """What the reference says, under the policy's autocast so that both round alike; `reference_logps` would switch
        autocast off."""
        if examples[0].reference_logps is not None:
            return torch.tensor([one.reference_logps for one in examples])
        if self.reference is not None:
            return self._scored(examples, self.reference.run)
        return self._scored(examples, self._run_without_adapters)

    def _run_without_adapters(self, function: Callable[[nn.Module], T]) -> T:
        def run(model: Any) -> T:
            with VLM.of(model).evaluation_mode(), model.disable_adapter():
                return function(model)

        return self.policy.run(run)


def make_dummy_example(
    models: Sequence[nn.Module], processor: Processor, records: Iterable[Mapping[str, Any]]
) -> EncodedExample:
    """Encode the first readable record with a short response and run it once with each of the models.

    A model's first run includes tests of the model, which take additional passes of its decoder. After this call, each
    run takes one pass, as sharded models need it.

    Raises ValueError if no record can be read.
    """
    for record in records:
        try:
            one = encode_chat(models[0], processor, record["images"], ChatPrompt.of_record(record), ["."])
        except EXAMPLE_ERRORS:
            continue
        with torch.no_grad():
            for model in models:
                response_logps(model, [one.inputs], [one.ids])
        return EncodedExample(str(record.get("key")), *one, reference_logps=None)
    raise ValueError("records: needs at least one that can be read, got none")


def _distorted_row(example: EncodedExample) -> tuple[dict[str, Any], list[list[int]], list[list[bool]]]:
    """The chosen response over the distorted images; the other responses are empty, so that one pass can score both
    images."""
    nothing: list[Any] = [[] for _ in example.ids[1:]]
    return example.distorted or {}, [example.ids[0], *nothing], [example.masks[0], *nothing]


def _as_last_column(found: ResponseLogps, count: int) -> ResponseLogps:
    """The first `count` rows, with the first response of each row after them as one more column."""
    return ResponseLogps(*(torch.cat([rows[:count], rows[count:, :1]], dim=1) for rows in found))


def _stacked_targets(examples: list[EncodedExample]) -> Any:
    """The targets of the examples, which have been fixed together; None if they are not."""
    if examples[0].targets is None:
        return None
    return tree_map(lambda *rows: torch.stack(rows), *(one.targets for one in examples))


def _require_finite(what: str, values: Tensor, examples: list[EncodedExample]) -> None:
    if not bool(values.isfinite().all()):
        keys = ", ".join(repr(one.key) for one in examples)
        raise NonFiniteLossError(f"{what}, of examples {keys}: needs finite numbers, got {values.tolist()}")


def _group_by_shape(examples: list[EncodedExample]) -> list[list[EncodedExample]]:
    """Groups whose examples have equally many responses, and all or none of which have stored reference
    log-probabilities, distorted images or rewards."""
    groups = defaultdict(list)
    for one in examples:
        shape = (len(one.ids), one.reference_logps is None, one.distorted is None, one.rewards is None)
        groups[shape].append(one)
    return list(groups.values())
