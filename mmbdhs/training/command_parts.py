"""The parts of a run that `mmbdhs train` takes by name: sources, objectives, annotators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs import losses
from mmbdhs.logprobs import ResponseLogps
from mmbdhs.runs import check_known, load_object, parse_settings
from mmbdhs.sampling import BDHSConfig, SamplingConfig
from mmbdhs.training.annotators import Annotator, Comparison, EndpointAnnotator, LikelihoodAnnotator, ModelAnnotator
from mmbdhs.training.heads import REWARD_HEAD
from mmbdhs.training.objectives import AnyObjective, Objective, has_own_forward, losses_of, pairwise, supervised
from mmbdhs.training.pair_sources import (
    DistortedSource,
    MixedSource,
    OnlineBDHSSource,
    OnlinePairsSource,
    PairSource,
    StoredSource,
    SupervisedSource,
)
from mmbdhs.training.part_checks import check_rewards
from mmbdhs.training.reinforcement import ppo, rloo
from mmbdhs.training.reward_model import RewardModel, reward_modelling
from mmbdhs.training.rollouts import AnnotatorReward, Reward, Rollout, RolloutSource
from mmbdhs.vlm import Processor


@dataclass
class NamedAnnotator:
    """The annotator of `--annotator NAME KEY=VALUE …`, which is made once the model has been loaded; the user's own,
    which needs no model, is made at once.

    name: "endpoint", "model", "likelihood" or "module:name".
    settings: its arguments; for "model" and "likelihood", `model` is the folder or name of a judge's model and
        processor, without which the policy judges itself.
    """

    name: str
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if ":" in self.name:
            self._annotator: Annotator = _imported("annotator", self.name, self.settings)

    def load(self, policy: nn.Module, processor: Processor) -> None:
        """Make the annotator. Raises what its model or its arguments raise."""
        self._policy = self._judge = policy
        settings = dict(self.settings)
        if ":" in self.name:
            return
        if self.name == "endpoint":
            self._annotator = EndpointAnnotator(**settings)
            return
        if (folder := settings.pop("model", None)) is not None:
            self._judge = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
            processor = AutoProcessor.from_pretrained(folder)
        kind = ModelAnnotator if self.name == "model" else LikelihoodAnnotator
        self._annotator = kind(self._judge, processor, **settings)

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        self._judge.to(next(self._policy.parameters()).device)
        return self._annotator(comparisons)


def parse_annotator(words: Sequence[str]) -> NamedAnnotator:
    """The annotator of `--annotator NAME KEY=VALUE …`. Raises ValueError or TypeError for wrong names."""
    kinds = {"endpoint": EndpointAnnotator, "model": ModelAnnotator, "likelihood": LikelihoodAnnotator}
    name, *settings = words
    found = parse_settings(settings)
    if ":" in name:
        return NamedAnnotator(name, found)
    check_known("annotator", [name], kinds)
    known = set(inspect.signature(kinds[name]).parameters) - {"processor"}
    check_known("annotator", found, known)
    if missing := {"client", "model_name"} - found.keys() if name == "endpoint" else set():
        raise ValueError(f"annotator: needs client=URL and model_name=NAME for an endpoint, {min(missing)} is missing")
    return NamedAnnotator(name, found)


@dataclass
class NamedReward:
    """The reward of `--reward NAME KEY=VALUE …`. A reward model is loaded after the policy, others at once.

    name: "annotator", "module:name", or the folder of a reward model.
    settings: its arguments.
    annotator: of "annotator".
    """

    name: str
    settings: dict[str, Any]
    annotator: Annotator | None = None

    def __post_init__(self) -> None:
        self.processor: Processor | None = None
        self._reward: Reward | None = None
        if self.name == "annotator":
            if self.annotator is None:
                raise ValueError("annotator: needs one for --reward annotator, such as --annotator likelihood")
            self._reward = AnnotatorReward(self.annotator, **self.settings)
        elif ":" in self.name:
            self._reward = _imported("reward", self.name, self.settings)
        elif not (Path(self.name) / f"{REWARD_HEAD}.safetensors").is_file():
            raise ValueError(
                "reward: needs annotator, module:name, or the folder of a model that --objective reward wrote, got "
                f"{self.name!r}"
            )

    def load(self, policy: nn.Module) -> None:
        """Load a reward model to the device of the policy."""
        if self._reward is None:
            model = RewardModel.from_pretrained(self.name, **self.settings)
            model.model.to(next(policy.parameters()).device)
            self._reward, self.processor = model, model.processor

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        if self._reward is None:
            raise ValueError("reward: needs load() before the first call")
        return self._reward(rollouts)


def parse_reward(words: Sequence[str] | None, annotator: Annotator | None = None) -> NamedReward | None:
    """The reward of `--reward NAME KEY=VALUE …`. Raises ValueError or TypeError for wrong names."""
    if words is None:
        return None
    name, *settings = words
    return NamedReward(name, parse_settings(settings), annotator if name == "annotator" else None)


def parse_source(
    words: Sequence[str], annotator: Annotator | None = None, reward: NamedReward | None = None
) -> PairSource:
    """The source of `--source NAME KEY=VALUE …`.

    annotator: ranks the responses of `online` and `mixed`.
    reward: scores the responses of `rollouts`.

    Raises ValueError or TypeError for wrong names, and ValueError for a source that lacks an annotator or a
    reward.
    """

    def bdhs(similarity: str | None = None, with_stored: bool = False, **config: Any) -> OnlineBDHSSource:
        return OnlineBDHSSource(BDHSConfig(**config), similarity, with_stored)

    def online(**sampling: Any) -> OnlinePairsSource:
        if annotator is None:
            raise ValueError(f"annotator: needs one for the source {name!r}, such as --annotator likelihood")
        return OnlinePairsSource(annotator, SamplingConfig(**sampling))

    def mixed(p: float = 0.5, **sampling: Any) -> MixedSource:
        return MixedSource(StoredSource(), online(**sampling), p, sampling.get("seed", 0))

    def rollouts(num_generations: int = 4, **sampling: Any) -> RolloutSource:
        if reward is None:
            raise ValueError("reward: needs one for the source 'rollouts', such as --reward FOLDER of a reward model")
        return RolloutSource(reward, num_generations, SamplingConfig(**sampling))

    makers: dict[str, Callable[..., PairSource]] = {
        "stored": StoredSource,
        "supervised": SupervisedSource,
        "bdhs": bdhs,
        "povid": DistortedSource,
        "online": online,
        "mixed": mixed,
        "rollouts": rollouts,
    }
    name, *settings = words
    is_reward = reward is not None and reward.annotator is not None
    if annotator is not None and not is_reward and name not in ("online", "mixed"):
        raise ValueError(
            f"annotator: is used by the sources online and mixed and by --reward annotator, got the source {name!r}"
        )
    if reward is not None and name != "rollouts":
        raise ValueError(f"reward: is used by the source rollouts, got the source {name!r}")
    if ":" in name:
        return _imported("source", name, parse_settings(settings))
    check_known("source", [name], makers)
    return makers[name](**parse_settings(settings))


def parse_method(
    objective: Sequence[str] | None, loss: Sequence[str] | None, beta: float | None = None
) -> tuple[AnyObjective, str]:
    """What `--objective NAME KEY=VALUE …` or `--loss NAME KEY=VALUE …` names, and the name of its usual source.

    beta: one more setting of either.

    Raises ValueError or TypeError for wrong names and for both of them.
    """
    if objective is None:
        return parse_objective(loss or ["dpo"], beta), "stored"
    if loss is not None:
        raise ValueError(f"loss: needs no --objective, got --objective {objective[0]} and --loss {loss[0]}")
    kinds: dict[str, Callable[..., AnyObjective]] = {"reward": reward_modelling, "rloo": rloo, "ppo": ppo}
    name, *rest = objective
    check_known("objective", [name], kinds)
    settings = _with_beta(parse_settings(rest), beta)
    return kinds[name](**settings), "stored" if name == "reward" else "rollouts"


def parse_objective(words: Sequence[str], beta: float | None = None) -> Objective:
    """The objective of `--loss NAME KEY=VALUE …`.

    beta: one more setting of the loss.

    Raises ValueError or TypeError for wrong names.
    """
    name, *rest = words
    settings = _with_beta(parse_settings(rest), beta)
    if ":" in name:
        found = load_object("loss", name)
        return pairwise(found, **settings) if _compares_pairs(found) else _imported("loss", name, settings)
    if name == "sft":
        return supervised(**settings)
    check_known("loss", [name], loss_names())
    return pairwise(getattr(losses, f"{name}_loss"), **settings)


def _with_beta(settings: dict[str, Any], beta: float | None) -> dict[str, Any]:
    if beta is None:
        return settings
    if "beta" in settings:
        raise ValueError(f"beta: needs one value, got --beta {beta} and beta={settings['beta']} with --loss")
    return settings | {"beta": beta}


def loss_names() -> list[str]:
    """The names of the losses that --loss takes."""
    pairs = [name for name in losses.__all__ if _compares_pairs(getattr(losses, name))]
    return ["sft", *(name.removesuffix("_loss") for name in pairs)]


def _imported(option: str, name: str, settings: dict[str, Any]) -> Any:
    """The object `module:name`: a class is made with the settings, a function is called with them each time."""
    found = load_object(option, name)
    if isinstance(found, type):
        return found(**settings)
    if not callable(found):
        raise TypeError(f"{option}: needs a class or a function, got {name!r}, which is {type(found).__name__}")
    return partial(found, **settings) if settings else found


def check_fit(source: PairSource, objective: AnyObjective) -> None:
    """Try the objective on responses as the source gives them, made of plain numbers. Raises ValueError or TypeError
    for settings of the loss that are out of range, and for a source that gives no pairs to a loss of pairs, or no
    rewards to an objective that needs them."""
    check_rewards(source, objective)
    if has_own_forward(objective):
        return
    responses = len(source.columns) if isinstance(source, (SupervisedSource, DistortedSource)) else 2
    columns = responses + isinstance(source, DistortedSource)
    policy = ResponseLogps(-torch.ones(2, columns, 3), torch.ones(2, columns, 3, dtype=torch.bool))
    losses_of(objective, policy, policy, ids=[[[0, 1, 2]] * responses] * 2)


def _compares_pairs(loss: Any) -> bool:
    """Whether this is a loss of a chosen and a rejected response."""
    return inspect.isfunction(loss) and "policy_rejected_logps" in inspect.signature(loss).parameters
