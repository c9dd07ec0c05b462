"""Forward and backward passes of a micro-batch: candidates, log-probabilities, losses, gradients."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.logprobs import ResponseLogps, encode_responses, response_logps
from mmbdhs.sampling import EXAMPLE_ERRORS
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.log import left_out_sums, metric_sums
from mmbdhs.training.objectives import Objective, needs_reference
from mmbdhs.training.pair_sources import Candidates, PairSource, TrainingExample
from mmbdhs.training.sharding import DistributedModel
from mmbdhs.vlm import VLM, Processor

_LOG = logging.getLogger("mmbdhs")


class NonFiniteLossError(Exception):
    """A log-probability, a loss or a gradient is NaN or infinite; it has not reached the weights or a checkpoint."""


class EncodedExample(NamedTuple):
    """A training example as the model takes it.

    key: the example's key, for error messages.
    inputs: the model inputs of images and prompt.
    ids: token ids of each response.
    reference_logps: the log-probability of each response under the reference in nats, if it is stored.
    """

    key: int | str
    inputs: dict[str, Any]
    ids: list[list[int]]
    reference_logps: tuple[float, ...] | None


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
        """Run the examples forward and backward, and return their sums in the layout of `StepMetrics`, float64 [9].

        Raises NonFiniteLossError with the examples' keys, and ValueError for an example that cannot be read unless
        config.on_error is "skip".
        """
        candidates = self._candidates(examples)
        decided = [(one, texts) for one, texts in zip(examples, candidates, strict=True) if texts]
        encoded = [found for one, texts in decided if (found := self._encode(one, texts))]
        groups = _group_by_shape(encoded)
        dummy_passes = self.policy.common_pass_count(len(groups)) - len(groups)
        sums = left_out_sums(undecided=len(examples) - len(decided), skipped=len(decided) - len(encoded))
        sums += sum(self._accumulate_group(step, group) for group in groups)
        if self.dummy_example is not None:
            for _ in range(dummy_passes):
                self.backward(0 * self._policy_and_reference([self.dummy_example])[0].sums.sum())
        return sums

    def _candidates(self, examples: Sequence[TrainingExample]) -> list[Candidates | None]:
        model, is_offline = self.policy.model, getattr(self.source, "offline", False)
        gathered = nullcontext() if is_offline else self.policy.full_parameters()
        with gathered, torch.no_grad(), VLM.of(model).evaluation_mode():
            return self.source(model, self.processor, examples) if examples else []

    def _encode(self, example: TrainingExample, candidates: Candidates) -> EncodedExample | None:
        images, prompt = example.record["images"], example.record["prompt"]
        try:
            inputs, ids = encode_responses(self.policy.model, self.processor, images, prompt, candidates.texts)
        except EXAMPLE_ERRORS as error:
            if self.config.on_error == "raise":
                raise ValueError(f"records: example {example.key!r}: {error}") from error
            _LOG.warning("skipped example %r: %s", example.key, error)
            return None
        return EncodedExample(example.key, inputs, ids, candidates.reference_logps if self.stored_reference else None)

    def _accumulate_group(self, step: int, examples: list[EncodedExample]) -> Tensor:
        """Run examples with equally many responses."""
        policy, reference = self._policy_and_reference(examples)
        _require_finite(f"log-probabilities in step {step}", policy.sums, examples)
        result = self.objective(policy, reference)
        _require_finite(f"loss in step {step}", result.losses, examples)
        self.backward(result.losses.sum())
        tokens = sum(one.inputs["input_ids"].shape[1] + sum(map(len, one.ids)) for one in examples)
        return metric_sums(result, tokens)

    def _policy_and_reference(self, examples: list[EncodedExample]) -> tuple[ResponseLogps, Tensor | None]:
        """The policy's log-probabilities, and the reference's sums [B, N] in nats if the objective needs them."""
        reference = self._reference_sums(examples) if needs_reference(self.objective) else None
        policy = self.policy.run(partial(self._logps, examples))
        return policy, None if reference is None else reference.to(policy.sums)

    def _logps(self, examples: list[EncodedExample], model: nn.Module) -> ResponseLogps:
        prompts, ids = [one.inputs for one in examples], [one.ids for one in examples]
        with self.autocast():
            return response_logps(model, prompts, ids, truncate_responses=self.config.truncate_responses)

    @torch.no_grad()
    def _reference_sums(self, examples: list[EncodedExample]) -> Tensor:
        """The reference's sums [B, N], under the policy's autocast so that both round alike; `reference_logps` would
        switch autocast off."""
        if examples[0].reference_logps is not None:
            return torch.tensor([one.reference_logps for one in examples])
        if self.reference is not None:
            return self.reference.run(partial(self._logps, examples)).sums
        return self.policy.run(partial(self._without_adapters, examples)).sums

    def _without_adapters(self, examples: list[EncodedExample], model: Any) -> ResponseLogps:
        with VLM.of(model).evaluation_mode(), model.disable_adapter():
            return self._logps(examples, model)


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
            inputs, ids = encode_responses(models[0], processor, record["images"], record["prompt"], ["."])
        except EXAMPLE_ERRORS:
            continue
        with torch.no_grad():
            for model in models:
                response_logps(model, [inputs], [ids])
        return EncodedExample(str(record.get("key")), inputs, ids, None)
    raise ValueError("records: needs at least one that can be read, got none")


def _require_finite(what: str, values: Tensor, examples: list[EncodedExample]) -> None:
    if not bool(values.isfinite().all()):
        keys = ", ".join(repr(one.key) for one in examples)
        raise NonFiniteLossError(f"{what}, of examples {keys}: needs finite numbers, got {values.tolist()}")


def _group_by_shape(examples: list[EncodedExample]) -> list[list[EncodedExample]]:
    """Groups whose examples have equally many responses, and all or none have stored reference log-probabilities."""
    groups = defaultdict(list)
    for one in examples:
        groups[len(one.ids), one.reference_logps is None].append(one)
    return list(groups.values())
