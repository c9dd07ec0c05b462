"""The runs of the benchmark of rewards: reward models by the pairs they learn from, and policies by their rewards.

A run that has ended is kept in a folder, so a benchmark that was killed goes on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignment_judge import judge
from alignment_rejected import Start
from alignment_runs import packed, train_config, trained, unpacked
from alignment_world import Mixture, Records, base, recipe
from reward_data import SAMPLING, oracle, pairs_of_each_kind, with_images

from mmbdhs import miniature
from mmbdhs.data import write_whole
from mmbdhs.evaluation import Outcome
from mmbdhs.miniature.language import BIASED, CLEAN
from mmbdhs.training import (
    Reward,
    RewardModel,
    RolloutSource,
    StoredSource,
    TrainConfig,
    reward_accuracy,
    reward_modelling,
)

ORACLE = "oracle"
CAPTIONS = Mixture(questions=False)


class Method(NamedTuple):
    """How a policy learns, or does not where there is no objective.

    reward: the oracle, or the kind of pairs that a reward model has learned from.
    rate: the highest learning rate.
    steps: of 16 prompts each.
    """

    reward: str
    objective: Any
    rate: float = 1e-3
    steps: int = 60


@dataclass(frozen=True)
class Study:
    """All runs at one scale.

    folder: keeps what has ended.
    images: to sample pairs from, without the held-out ones.
    held_out: images of the held-out pairs.
    prompts: images that policies learn from.
    judged: scenes that policies are judged with.
    reward_steps: of training a reward model, with 16 pairs each.
    shorter: divides the steps of policies.
    """

    folder: Path
    images: int = 800
    held_out: int = 120
    prompts: int = 400
    judged: int = 200
    reward_steps: int = 120
    shorter: int = 1

    def pairs(self, seed: int) -> tuple[dict[str, Records], dict[str, Records]]:
        """Pairs of each kind to learn from, and held-out ones, sampled with this seed."""
        rows = self.pair_rows(seed)
        first, second = ({kind: with_images(part) for kind, part in parts.items()} for parts in rows)
        return first, second

    def pair_rows(self, seed: int) -> list[dict[str, Records]]:
        """The same pairs without their images."""
        found: list[dict[str, Records]] = kept(self.folder / f"pairs-{seed}.json", lambda: self._pairs(seed))
        return found

    def _pairs(self, seed: int) -> list[dict[str, Records]]:
        start = Start(*miniature.load(base(0)), seed)
        records = CAPTIONS.records(self.images + self.held_out, CLEAN)
        return [pairs_of_each_kind(start, some) for some in (records[: self.images], records[self.images :])]

    def accuracies(self, kind: str, seed: int) -> dict[str, float]:
        """How often the reward model of one kind of pairs prefers the chosen of held-out pairs of each kind."""
        return dict(kept(self._model(kind, seed) / "accuracies.json", lambda: self._accuracies(kind, seed)))

    def _accuracies(self, kind: str, seed: int) -> dict[str, float]:
        pairs, held_out = self.pairs(seed)
        model, processor = miniature.load(base(0))
        with tempfile.TemporaryDirectory() as output:
            config = _config(output, self.reward_steps, 1e-3, seed)
            folder = trained(model, processor, pairs[kind], StoredSource(), reward_modelling(), config)
            shutil.copytree(folder, self._model(kind, seed), dirs_exist_ok=True)
        (found,) = reward_accuracy({kind: RewardModel(model, processor)}, held_out).shares.values()
        return {name: one.value for name, one in found.items()}

    def _model(self, kind: str, seed: int) -> Path:
        return self.folder / f"{kind}-{seed}"

    def outcomes(self, name: str, method: Method, seed: int) -> tuple[list[Outcome], float]:
        """What the answers of a policy count, and the CPU minutes of its training. A run is kept by its name."""
        row = kept(self.folder / f"{name}-{seed}.json", lambda: self._outcomes(name, method, seed))
        return unpacked(row), row["minutes"]

    def _outcomes(self, name: str, method: Method, seed: int) -> dict[str, Any]:
        model, processor = miniature.load(base(0))
        begin = time.process_time()
        if method.objective is not None:
            self._learn(model, processor, method, seed)
        minutes = (time.process_time() - begin) / 60
        run = {"method": name, "base": 0, "seed": seed}
        return {"run": run, "minutes": minutes, **packed(judge(model, processor, "balanced", self.judged, seed))}

    def _learn(self, model: Any, processor: Any, method: Method, seed: int) -> None:
        """Reinforcement learning of captions. The references of the records only give the statistics of the rewards."""
        source = RolloutSource(self._reward(method.reward, seed), 4, replace(SAMPLING, seed=seed))
        records = CAPTIONS.records(self.prompts, BIASED)
        with tempfile.TemporaryDirectory() as output:
            config = _config(output, method.steps // self.shorter, method.rate, seed)
            trained(model, processor, records, source, method.objective, config)

    def _reward(self, kind: str, seed: int) -> Reward:
        if kind == ORACLE:
            return oracle
        self.accuracies(kind, seed)  # trains the model unless it is there
        return RewardModel.from_pretrained(self._model(kind, seed))


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, made once and kept as JSON."""
    if not file.exists():
        write_whole(file, [json.dumps(make()).encode()])
    return json.loads(file.read_text())


def _config(output: str, steps: int, rate: float, seed: int) -> TrainConfig:
    return train_config(output, max_steps=steps, per_device_train_batch_size=16, learning_rate=rate, seed=seed)


def reward_recipe() -> str:
    """Changes with the code that determines what runs find. Methods differ by their names alone."""
    ours, alignment = ("runs", "data"), ("runs", "judge", "rejected", "world")
    return recipe(*(f"reward_{name}" for name in ours), *(f"alignment_{name}" for name in alignment))
