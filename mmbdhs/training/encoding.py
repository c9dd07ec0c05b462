"""From what a source found for an example to what the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from mmbdhs.data import ChatPrompt, as_chat, load_images
from mmbdhs.logprobs import encode_chat, fit_context
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.objectives import AnyObjective, has_own_forward, scores_distorted, takes_stored_reference
from mmbdhs.training.pair_sources import Candidates, PairSource, TrainingExample, columns_of
from mmbdhs.vlm import VLM, Processor, encode_prompt


class EncodedExample(NamedTuple):
    """A training example as the model takes it.

    key: the example's key, for error messages.
    inputs: the model inputs of images and prompt.
    ids: token ids of each response.
    masks: which of them count.
    reference_logps: the log-probability of each response under the reference in nats, if it is stored.
    distorted: the model inputs of distorted images and prompt; None if there are none.
    rewards: of each response, as they were given and as they are learned from; None if there are none.
    targets: what the objective compares with, where that is fixed before the first pass; a tree of tensors.
    """

    key: int | str
    inputs: dict[str, Any]
    ids: list[list[int]]
    masks: list[list[bool]]
    reference_logps: tuple[float, ...] | None
    distorted: dict[str, Any] | None = None
    rewards: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    targets: Any = None


@dataclass(frozen=True)
class ExampleEncoder:
    """Encodes examples for one model, processor and run.

    stored_reference: whether stored log-probabilities are used in place of the reference's.
    """

    model: nn.Module
    processor: Processor
    source: PairSource
    objective: AnyObjective
    config: TrainConfig
    stored_reference: bool

    def encode(self, example: TrainingExample, candidates: Candidates) -> EncodedExample:
        """The example on the CPU. Raises ExampleError for one that cannot be read, and ValueError for candidates that
        are not of the objective's kind."""
        config, record, model = self.config, example.record, self.model
        settings: Any = {"append_eos": config.append_eos, "device": torch.device("cpu")}
        self._check_rewards(example, candidates)
        if candidates.response_ids is not None:
            return self._encoded_ids(example, candidates, candidates.response_ids)
        names = columns_of(self.source)[: len(candidates.responses)]
        names += ("sampled response",) * (len(candidates.responses) - len(names))
        asked = record["images"], ChatPrompt.of_record(record), candidates.responses
        one = encode_chat(model, self.processor, *asked, names=names, **settings)
        room = VLM.of(model), one.inputs["input_ids"].shape[1]
        ids = fit_context(*room, one.ids, config.truncate_responses)
        masks = fit_context(*room, one.masks, config.truncate_responses)
        uses_stored = self.stored_reference and takes_stored_reference(self.objective)
        stored = candidates.reference_logps if uses_stored else None
        distorted = None
        if candidates.distorted is not None:
            noise = candidates.distorted
            noisy = noise.of_images(record["images"]), asked[1], candidates.responses[:1]
            distorted = noise.of_inputs(encode_chat(model, self.processor, *noisy, **settings).inputs)
        elif scores_distorted(self.objective):
            raise ValueError(f"source: needs distorted images for this objective, got none for example {example.key!r}")
        return EncodedExample(example.key, one.inputs, ids, masks, stored, distorted, _rewards(candidates))

    def _encoded_ids(
        self, example: TrainingExample, candidates: Candidates, response_ids: Sequence[list[int]]
    ) -> EncodedExample:
        """The prompt as it was sampled from, and the tokens that were sampled: their text may have others."""
        vlm, images = VLM.of(self.model), load_images(example.record["images"])
        chat = as_chat(ChatPrompt.of_record(example.record), len(images))
        messages: Any = chat.messages
        place = torch.device("cpu"), vlm.dtype
        inputs = encode_prompt(self.processor, messages, images, *place, chat.template_arguments)
        ids = fit_context(vlm, inputs["input_ids"].shape[1], list(response_ids), self.config.truncate_responses)
        masks = [[True] * len(text) for text in ids]
        return EncodedExample(example.key, inputs, ids, masks, None, None, _rewards(candidates))

    def _check_rewards(self, example: TrainingExample, candidates: Candidates) -> None:
        """Raise ValueError where the source does not give what the objective takes."""
        if not has_own_forward(self.objective):
            if candidates.response_ids is not None:
                raise ValueError(
                    f"source: needs pairs for this objective, got responses with rewards for example {example.key!r}"
                )
            return
        if candidates.distorted is not None:
            raise ValueError(f"source: needs text for this objective, got distorted images for example {example.key!r}")
        if self.objective.needs_rewards and candidates.rewards is None:
            raise ValueError(
                f"source: needs a reward of each response for this objective, got none for example {example.key!r}"
            )


def _rewards(candidates: Candidates) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The rewards as they were given, and as they are learned from."""
    learned = candidates.rewards
    return None if learned is None else (candidates.raw_rewards or learned, learned)
