"""Reward models: the objective that trains one (Eq. 1 of arXiv 2407.02477), the model itself, and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.checks import at_least_zero, equal_lengths
from mmbdhs.data import Images, Prompt
from mmbdhs.errors import ExampleError
from mmbdhs.evaluation import Estimate, ratio
from mmbdhs.logprobs import ResponseLogps, encode_chat, last_states
from mmbdhs.losses import averaged_loss, reward_model_loss
from mmbdhs.runs import load_model
from mmbdhs.training.annotator_accuracy import pair_comparison
from mmbdhs.training.heads import REWARD_HEAD, apply_head, load_head
from mmbdhs.training.log import preference_metrics
from mmbdhs.training.objectives import Ids, LossWithMetrics, OnePass, Rewards, ScoredObjective
from mmbdhs.training.rollouts import Rollout
from mmbdhs.vlm import VLM, Processor


class _Scores(NamedTuple):
    """sums: the reward of each response, [B, N]."""

    sums: Tensor


@dataclass(frozen=True)
class _RewardModelling(OnePass):
    centering: float
    needs_reference: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = False
    head: ClassVar[str | None] = REWARD_HEAD
    max_kl: ClassVar[float] = float("inf")

    def __post_init__(self) -> None:
        at_least_zero(centering=self.centering)

    def forward(self, model: nn.Module, prompts: Sequence[Mapping[str, Any]], ids: Ids) -> _Scores:
        return _Scores(apply_head(model, REWARD_HEAD, last_states(model, prompts, ids)))

    def targets(self, scores: _Scores, reference: ResponseLogps | None, rewards: Rewards | None) -> Tensor:
        """By how much the chosen response is better than each, [B, N]; 0 where the data does not say it."""
        if rewards is None:
            return torch.zeros_like(scores.sums)
        return rewards.learned[:, :1] - rewards.learned

    def __call__(self, scores: _Scores, targets: Tensor) -> LossWithMetrics:
        chosen, *others = scores.sums.unbind(dim=1)
        if not others:
            raise ValueError("objective: needs two responses or more of each example, the source has fewer")
        pairs = zip(others, targets.to(chosen).unbind(dim=1)[1:], strict=True)
        losses = [reward_model_loss(chosen, other, margin=m, centering=self.centering) for other, m in pairs]
        result = averaged_loss(losses, weights=[1 / len(others)] * len(others))
        return LossWithMetrics(result.losses, preference_metrics(result))


def reward_modelling(*, centering: float = 0.0) -> ScoredObjective:
    """The loss of a reward model, Eq. 1: −log σ(r₊ − r₋ − m), where r is a linear function of the decoder's hidden
    state of a response's last token. Chosen and rejected response run in one packed row.

    centering: c, at least 0, of c (r₊ + r₋)², which pulls the mean reward to 0; 0 for no such term.

    The margin m is the record's column `margin`, 0 without one (`StoredSource`). What the trainer saves is loaded by
    `RewardModel.from_pretrained`. Raises ValueError for a number out of range.
    """
    return _RewardModelling(centering)


class RewardModel:
    """A vision-language model that scores responses, and a reward for `RolloutSource`.

    model: with a reward head, as `train` returns it or `from_pretrained` loads it.
    processor: its processor.
    append_eos: as in the `TrainConfig` that it was trained with.

    Raises ValueError for a model without a reward head.
    """

    def __init__(self, model: nn.Module, processor: Processor, *, append_eos: bool = True) -> None:
        if not hasattr(VLM.of(model).model, REWARD_HEAD):
            raise ValueError(
                f"model: needs a reward head, as reward_modelling() trains it, {VLM.of(model).name} has none"
            )
        self.model, self.processor, self._append_eos = model, processor, append_eos

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: str = "auto", append_eos: bool = True) -> RewardModel:
        """Load a reward model from the folder in which `train` saved it, with or without adapters.

        folder: `final`, or a checkpoint.
        dtype: of the weights; "auto" for the stored one, or the name of a torch dtype.
        append_eos: as in the `TrainConfig` that it was trained with.

        Raises ValueError where the folder holds no model, or no reward head that fits it.
        """
        model, processor = load_model(str(folder), dtype)
        load_head(model, REWARD_HEAD, Path(folder))
        return cls(model.eval(), processor, append_eos=append_eos)

    def rewards(self, images: Images, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """The reward of each response to one prompt, which runs once. An empty response is scored by its prompt.

        Raises ExampleError for images, prompts and responses that cannot be read.
        """
        texts = [text if text.strip() else "." for text in responses]
        one = encode_chat(self.model, self.processor, images, prompt, texts, append_eos=self._append_eos)
        ids = [own if text.strip() else [] for own, text in zip(one.ids, responses, strict=True)]
        with torch.no_grad(), VLM.of(self.model).evaluation_mode():
            states = last_states(self.model, [one.inputs], [ids])
            found: list[float] = apply_head(self.model, REWARD_HEAD, states)[0].tolist()
        return found

    def __call__(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """The rewards of rollouts, as `RolloutSource` asks for them."""
        return [self.rewards(one.images, one.prompt, one.responses) for one in rollouts]


@dataclass(frozen=True)
class RewardAccuracy:
    """What `reward_accuracy` returns: printed, it is a table as the paper's Table 7.

    shares: for each reward model and each set of pairs the share of pairs whose chosen response has the higher reward,
        with a 95% interval.
    """

    shares: dict[str, dict[str, Estimate]]

    def __str__(self) -> str:
        """A line for each reward model and a column for each set of pairs, in percent."""
        columns = list(next(iter(self.shares.values())))
        rows = [["trained on", *columns]]
        rows += [[name, *(f"{100 * row[column].value:.2f}" for column in columns)] for name, row in self.shares.items()]
        first, *widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])
            for name, *cells in rows
        )


def reward_accuracy(
    models: Mapping[str, RewardModel], pairs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> RewardAccuracy:
    """How often reward models prefer the chosen response of held-out pairs, for each model and each set of pairs
    (section 5.5, Table 7). A tie counts as wrong.

    models: reward models by the name of the data that they were trained on.
    pairs: sets of preference records that none of them was trained on, by name, each response one turn of text.

    Raises ValueError for no models and no pairs, and ExampleError that names the row for a pair that cannot be read.
    """
    for name, value in {"models": models, "pairs": pairs, **pairs}.items():
        if not len(value):
            raise ValueError(f"{name}: needs at least one, got none")
    shares = {name: {column: _share(model, rows) for column, rows in pairs.items()} for name, model in models.items()}
    return RewardAccuracy(shares)


def _share(model: RewardModel, rows: Sequence[Mapping[str, Any]]) -> Estimate:
    equal_lengths(pairs=rows)
    right = []
    for number in range(len(rows)):
        pair = pair_comparison(rows[number], number, 0)
        try:
            chosen, rejected = model.rewards(pair.images, pair.prompt, (pair.first, pair.second))
        except ExampleError as error:
            raise ExampleError(f"pairs: row {number}: {error}") from error
        right.append(chosen > rejected)
    return ratio(right, [1] * len(right))
