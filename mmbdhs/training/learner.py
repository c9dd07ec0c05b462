"""Forward and backward passes of a micro-batch: candidates, log-probabilities, losses, gradients."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmbdhs.data import PAIR_FAULTS, ChatPrompt, load_images, pair_faults
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs import ResponseLogps, encode_chat, fit_context, predicted_ids, response_logps
from mmbdhs.sampling import EXAMPLE_ERRORS
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.log import counts, metric_sums
from mmbdhs.training.objectives import (
    Objective,
    losses_of,
    needs_reference,
    scores_distorted,
    takes_stored_reference,
)
from mmbdhs.training.pair_sources import Candidates, Found, PairSource, TrainingExample, columns_of
from mmbdhs.training.sharding import DistributedModel
from mmbdhs.vlm import VLM, Processor

_LOG = logging.getLogger("mmbdhs")

T = TypeVar("T")
Run = Callable[[Callable[[nn.Module], Any]], Any]
Decided = tuple[TrainingExample, Candidates | ExampleError]


class NonFiniteLossError(Exception):
    """A log-probability, a loss or a gradient is NaN or infinite; it has not reached the weights or a checkpoint."""


class EncodedExample(NamedTuple):
    """A training example as the model takes it.

    key: the example's key, for error messages.
    inputs: the model inputs of images and prompt.
    ids: token ids of each response.
    masks: which of them count.
    reference_logps: the log-probability of each response under the reference in nats, if it is stored.
    distorted: the model inputs of distorted images and prompt; None if there are none.
    """

    key: int | str
    inputs: dict[str, Any]
    ids: list[list[int]]
    masks: list[list[bool]]
    reference_logps: tuple[float, ...] | None
    distorted: dict[str, Any] | None = None


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
    objective: Objective
    reference: DistributedModel | None
    config: TrainConfig
    autocast: Callable[[], AbstractContextManager[Any]]
    backward: Callable[[Tensor], None]
    stored_reference: bool = True
    dummy_example: EncodedExample | None = None

    def accumulate_gradients(self, step: int, examples: Sequence[TrainingExample]) -> Tensor:
        """Run the examples forward and backward, and return their sums in the layout of `StepMetrics`, float64.

        Raises NonFiniteLossError with the examples' keys, and ValueError for an example that cannot be read unless
        config.on_error is "skip".
        """
        found = list(zip(examples, self._candidates(examples), strict=True))
        decided = [(example, one) for example, one in found if one is not None]
        useful, sums = self._useful(decided)
        encoded = [ready for example, one in useful if (ready := self._encode(example, one))]
        groups = _group_by_shape(encoded)
        sums += counts(undecided=len(examples) - len(decided), skipped=len(useful) - len(encoded))
        # A distorted group may take more passes, so sharded processes first run one kind of group, then the other.
        for is_distorted in (False, True):
            alike = [group for group in groups if (group[0].distorted is not None) == is_distorted]
            dummy_passes = self.policy.common_pass_count(len(alike)) - len(alike)
            sums += sum((self._accumulate_group(step, group) for group in alike), start=counts())
            self._run_dummies(dummy_passes, is_distorted)
        return sums

    def _run_dummies(self, count: int, is_distorted: bool) -> None:
        if self.dummy_example is None:
            return
        example = self.dummy_example
        if is_distorted:
            example = example._replace(distorted=example.inputs)
        for _ in range(count):
            self.backward(0 * self._policy_and_reference([example])[0].sums.sum())

    def _candidates(self, examples: Sequence[TrainingExample]) -> list[Found]:
        model, is_offline = self.policy.model, getattr(self.source, "offline", False)
        gathered = nullcontext() if is_offline else self.policy.full_parameters()
        with gathered, torch.no_grad(), VLM.of(model).evaluation_mode():
            return self.source(model, self.processor, examples) if examples else []

    def _useful(self, decided: list[Decided]) -> tuple[list[Decided], Tensor]:
        """What is left of the examples without the pairs that teach nothing, as far as the settings drop them, and the
        counts of these pairs."""
        faults = [() if isinstance(one, ExampleError) else pair_faults(one.responses) for _, one in decided]
        dropped = {name for name in PAIR_FAULTS if getattr(self.config, f"drop_{name}")}
        kept = [pair for pair, names in zip(decided, faults, strict=True) if dropped.isdisjoint(names)]
        return kept, sum((counts(**dict.fromkeys(names, 1)) for names in faults), start=counts())

    def _encode(self, example: TrainingExample, found: Candidates | ExampleError) -> EncodedExample | None:
        try:
            if isinstance(found, ExampleError):
                raise found
            return self._encoded(example, found)
        except EXAMPLE_ERRORS as error:
            if self.config.on_error == "raise":
                raise ExampleError(f"records: example {example.key!r}: {error}") from error
            _LOG.warning("skipped example %r: %s", example.key, error)
            return None

    def _encoded(self, example: TrainingExample, candidates: Candidates) -> EncodedExample:
        config, record, model = self.config, example.record, self.policy.model
        names = columns_of(self.source)[: len(candidates.responses)]
        names += ("sampled response",) * (len(candidates.responses) - len(names))
        asked = record["images"], ChatPrompt.of_record(record), candidates.responses
        one = encode_chat(model, self.processor, *asked, append_eos=config.append_eos, names=names)
        room = VLM.of(model), one.inputs["input_ids"].shape[1]
        ids = fit_context(*room, one.ids, config.truncate_responses)
        masks = fit_context(*room, one.masks, config.truncate_responses)
        uses_stored = self.stored_reference and takes_stored_reference(self.objective)
        stored = candidates.reference_logps if uses_stored else None
        distorted = None
        if candidates.distorted is not None:
            noise = candidates.distorted
            noisy = noise.of_images(load_images(record["images"])), asked[1], candidates.responses[:1]
            distorted = noise.of_inputs(encode_chat(model, self.processor, *noisy, append_eos=config.append_eos).inputs)
        elif scores_distorted(self.objective):
            raise ValueError(f"source: needs distorted images for this objective, got none for example {example.key!r}")
        return EncodedExample(example.key, one.inputs, ids, masks, stored, distorted)

    def _accumulate_group(self, step: int, examples: list[EncodedExample]) -> Tensor:
        """Run examples with equally many responses."""
        policy, reference = self._policy_and_reference(examples)
        _require_finite(f"log-probabilities in step {step}", policy.sums, examples)
        result = losses_of(self.objective, policy, reference, [one.ids for one in examples])
        _require_finite(f"loss in step {step}", result.losses, examples)
        self.backward(result.losses.sum())
        tokens = sum(one.inputs["input_ids"].shape[1] + sum(map(len, one.ids)) for one in examples)
        return metric_sums(result, policy, tokens)

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


def _require_finite(what: str, values: Tensor, examples: list[EncodedExample]) -> None:
    if not bool(values.isfinite().all()):
        keys = ", ".join(repr(one.key) for one in examples)
        raise NonFiniteLossError(f"{what}, of examples {keys}: needs finite numbers, got {values.tolist()}")


def _group_by_shape(examples: list[EncodedExample]) -> list[list[EncodedExample]]:
    """Groups whose examples have equally many responses, and all or none of which have stored reference
    log-probabilities or distorted images."""
    groups = defaultdict(list)
    for one in examples:
        groups[len(one.ids), one.reference_logps is None, one.distorted is None].append(one)
    return list(groups.values())
