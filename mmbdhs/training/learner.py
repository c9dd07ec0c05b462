"""Forward and backward of a few examples: candidates from the source, log-probabilities, losses, gradients."""

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
from mmbdhs.training.log import Tally
from mmbdhs.training.objectives import Objective, needs_reference
from mmbdhs.training.pair_sources import Candidates, PairSource, Visit
from mmbdhs.training.sharding import Placement
from mmbdhs.vlm import VLM

_LOG = logging.getLogger("mmbdhs")


class NonFiniteLossError(Exception):
    """A log-probability, loss or gradient is NaN or infinite; nothing of it reached the weights or a checkpoint."""


class Example(NamedTuple):
    """As the model takes it. inputs: the prompt's. ids: of each response."""

    key: str
    inputs: dict[str, Any]
    ids: list[list[int]]
    reference_logps: tuple[float, ...] | None


@dataclass(frozen=True)
class Learner:
    """Adds to the gradients of the policy those of the sum of the examples' losses.

    reference: a model, or None for the policy without its adapters. autocast: context manager around both.
    backward: called with the loss.
    stored_reference: whether numbers stored beside an example stand in for the reference's.
    stand_in: runs, and counts for nothing, where other processes have more to run than this one.
    """

    policy: Placement
    processor: Any
    source: PairSource
    objective: Objective
    reference: Placement | None
    config: TrainConfig
    autocast: Callable[[], AbstractContextManager]
    backward: Callable[[Tensor], None]
    stored_reference: bool = True
    stand_in: Example | None = None

    def learn(self, step: int, visits: Sequence[Visit]) -> Tensor:
        """Returns the sums of `Tally`. Raises NonFiniteLossError with the keys, ValueError for an example that cannot
        be read unless it may be skipped."""
        found = self._candidates(visits)
        chosen = [(visit, candidates) for visit, candidates in zip(visits, found, strict=True) if candidates]
        examples = [one for visit, candidates in chosen if (one := self._encode(visit, candidates))]
        groups, left_out = _alike(examples), (len(visits) - len(chosen), len(chosen) - len(examples))
        idle = self.policy.passes(len(groups)) - len(groups)
        sums = Tally.left_out(*left_out) + sum(self._learn_alike(step, group) for group in groups)
        for _ in range(idle):
            self.backward(0 * self._policy_and_reference([self.stand_in])[0].sums.sum())
        return sums

    def _candidates(self, visits: Sequence[Visit]) -> list[Candidates | None]:
        model, alone = self.policy.model, getattr(self.source, "offline", False)
        with nullcontext() if alone else self.policy.gathered(), torch.no_grad(), VLM.of(model).evaluation_mode():
            return self.source(model, self.processor, visits) if visits else []

    def _encode(self, visit: Visit, candidates: Candidates) -> Example | None:
        images, prompt = visit.record["images"], visit.record["prompt"]
        try:
            inputs, ids = encode_responses(self.policy.model, self.processor, images, prompt, candidates.texts)
        except EXAMPLE_ERRORS as error:
            if self.config.on_error == "raise":
                raise ValueError(f"records: example {visit.key!r}: {error}") from error
            _LOG.warning("skipped example %r: %s", visit.key, error)
            return None
        return Example(visit.key, inputs, ids, candidates.reference_logps if self.stored_reference else None)

    def _learn_alike(self, step: int, examples: list[Example]) -> Tensor:
        """Of examples with one number of responses."""
        policy, reference = self._policy_and_reference(examples)
        _require_finite(f"log-probabilities in step {step}", policy.sums, examples)
        result = self.objective(policy, reference)
        _require_finite(f"loss in step {step}", result.losses, examples)
        self.backward(result.losses.sum())
        tokens = sum(one.inputs["input_ids"].shape[1] + sum(map(len, one.ids)) for one in examples)
        return Tally.of(*result, tokens)

    def _policy_and_reference(self, examples: list[Example]) -> tuple[ResponseLogps, Tensor | None]:
        """The policy's log-probabilities, and the sums [B, N] of the reference's if the objective needs them."""
        reference = self._reference_sums(examples) if needs_reference(self.objective) else None
        policy = self.policy.run(partial(self._logps, examples))
        return policy, None if reference is None else reference.to(policy.sums)

    def _logps(self, examples: list[Example], model: nn.Module) -> ResponseLogps:
        prompts, ids = [one.inputs for one in examples], [one.ids for one in examples]
        with self.autocast():
            return response_logps(model, prompts, ids, truncate_responses=self.config.truncate_responses)

    @torch.no_grad()
    def _reference_sums(self, examples: list[Example]) -> Tensor:
        """[B, N]. As the policy's, under the same autocast, which `reference_logps` would switch off."""
        if examples[0].reference_logps is not None:
            return torch.tensor([one.reference_logps for one in examples])
        if self.reference is not None:
            return self.reference.run(partial(self._logps, examples)).sums
        return self.policy.run(partial(self._without_adapters, examples)).sums

    def _without_adapters(self, examples: list[Example], model: nn.Module) -> ResponseLogps:
        with VLM.of(model).evaluation_mode(), model.disable_adapter():
            return self._logps(examples, model)


def probed_example(models: Sequence[nn.Module], processor: Any, records: Iterable[Mapping[str, Any]]) -> Example:
    """The first of the records that can be read, with a response of its own, run by each of the models; afterwards
    their log-probabilities take one pass of the decoder. Raises ValueError without such a record."""
    for record in records:
        try:
            inputs, ids = encode_responses(models[0], processor, record["images"], record["prompt"], ["."])
        except EXAMPLE_ERRORS:
            continue
        with torch.no_grad():
            for model in models:
                response_logps(model, [inputs], [ids])
        return Example(str(record.get("key")), inputs, ids, None)
    raise ValueError("records: needs one that can be read, got none")


def _require_finite(what: str, values: Tensor, examples: list[Example]) -> None:
    if not bool(values.isfinite().all()):
        keys = ", ".join(repr(one.key) for one in examples)
        raise NonFiniteLossError(f"{what}, of examples {keys}: needs finite numbers, got {values.tolist()}")


def _alike(examples: list[Example]) -> list[list[Example]]:
    """In groups of one number of responses, with stored reference log-probabilities or without."""
    groups = defaultdict(list)
    for one in examples:
        groups[len(one.ids), one.reference_logps is None].append(one)
    return list(groups.values())
