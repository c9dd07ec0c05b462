"""Forward and backward of a few examples: candidates from the source, log-probabilities, losses, gradients."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.examples import EXAMPLE_ERRORS
from mmbdhs.objectives import Objective, needs_reference
from mmbdhs.packed import response_logps
from mmbdhs.pair_sources import Candidates, PairSource, Visit
from mmbdhs.preferences import encode_responses
from mmbdhs.responses import ResponseLogps
from mmbdhs.text_decoder import evaluating, unwrapped
from mmbdhs.train_config import TrainConfig
from mmbdhs.train_log import Tally

_LOG = logging.getLogger("mmbdhs")


class NonFiniteLossError(Exception):
    """A log-probability, loss or gradient is NaN or infinite; nothing of it reached the weights or a checkpoint."""


class _Encoded(NamedTuple):
    """An example as the model takes it. inputs: the prompt's. ids: of each response."""

    visit: Visit
    inputs: dict[str, Any]
    ids: list[list[int]]
    reference_logps: tuple[float, ...] | None


@dataclass(frozen=True)
class Learner:
    """Adds to the gradients of `model` those of the sum of the examples' losses.

    reference: a model, or None for `model` without its adapters. autocast: context manager around policy and reference.
    backward: called with the loss.
    """

    model: nn.Module
    processor: Any
    source: PairSource
    objective: Objective
    reference: nn.Module | None
    config: TrainConfig
    autocast: Callable[[], AbstractContextManager]
    backward: Callable[[Tensor], None]

    def learn(self, step: int, visits: Sequence[Visit]) -> Tensor:
        """Returns the sums of `Tally`. Raises NonFiniteLossError with the keys, ValueError for an example that cannot
        be read unless it may be skipped."""
        with torch.no_grad(), evaluating(unwrapped(self.model)):
            found = self.source(self.model, self.processor, visits)
        chosen = [(visit, candidates) for visit, candidates in zip(visits, found, strict=True) if candidates]
        encoded = [one for visit, candidates in chosen if (one := self._encode(visit, candidates))]
        left_out = len(visits) - len(chosen), len(chosen) - len(encoded)
        return Tally.left_out(*left_out) + sum(self._learn_alike(step, group) for group in _alike(encoded))

    def _encode(self, visit: Visit, candidates: Candidates) -> _Encoded | None:
        images, prompt = visit.record["images"], visit.record["prompt"]
        try:
            inputs, ids = encode_responses(self.model, self.processor, images, prompt, candidates.texts)
        except EXAMPLE_ERRORS as error:
            if self.config.on_error == "raise":
                raise ValueError(f"records: example {visit.key!r}: {error}") from error
            _LOG.warning("skipped example %r: %s", visit.key, error)
            return None
        return _Encoded(visit, inputs, ids, candidates.reference_logps)

    def _learn_alike(self, step: int, examples: list[_Encoded]) -> Tensor:
        """Of examples with one number of responses."""
        policy = self._logps(self.model, examples)
        _require_finite(f"log-probabilities in step {step}", policy.sums, examples)
        reference = self._reference_sums(examples, policy.sums) if needs_reference(self.objective) else None
        result = self.objective(policy, reference)
        _require_finite(f"loss in step {step}", result.losses, examples)
        self.backward(result.losses.sum())
        tokens = sum(one.inputs["input_ids"].shape[1] + sum(map(len, one.ids)) for one in examples)
        return Tally.of(*result, tokens)

    def _logps(self, model: nn.Module, examples: list[_Encoded]) -> ResponseLogps:
        prompts, ids = [one.inputs for one in examples], [one.ids for one in examples]
        with self.autocast():
            return response_logps(model, prompts, ids, truncate_responses=self.config.truncate_responses)

    def _reference_sums(self, examples: list[_Encoded], like: Tensor) -> Tensor:
        """[B, N]. As the policy's, under the same autocast, which `reference_logps` would switch off."""
        if examples[0].reference_logps is not None:
            return like.new_tensor([one.reference_logps for one in examples])
        if self.reference is not None:
            with torch.no_grad():
                return self._logps(self.reference, examples).sums
        with torch.no_grad(), evaluating(unwrapped(self.model)), self.model.disable_adapter():
            return self._logps(self.model, examples).sums


def _require_finite(what: str, values: Tensor, examples: list[_Encoded]) -> None:
    if not bool(values.isfinite().all()):
        keys = ", ".join(repr(one.visit.key) for one in examples)
        raise NonFiniteLossError(f"{what}, of examples {keys}: needs finite numbers, got {values.tolist()}")


def _alike(examples: list[_Encoded]) -> list[list[_Encoded]]:
    """In groups of one number of responses, with stored reference log-probabilities or without."""
    groups = defaultdict(list)
    for one in examples:
        groups[len(one.ids), one.reference_logps is None].append(one)
    return list(groups.values())
