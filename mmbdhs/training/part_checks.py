"""Whether the parts that `train` is given are of the right kind."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmbdhs.checks import instance, kind_of
from mmbdhs.data import is_stream
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.objectives import has_own_forward
from mmbdhs.training.pair_sources import gives_rewards, is_offline


def check_parts(records: Any, eval_records: Any, source: Any, objective: Any, config: Any) -> None:
    """Raise TypeError for parts of another kind, and ValueError for a stream without an end, and say what to pass."""
    instance("config", config, TrainConfig)
    if not is_stream(records):
        _check_sized("records", records)
    elif config.max_steps == -1:
        raise ValueError(f"max_steps: needs a number for records without a length ({type(records).__name__}), got -1")
    if eval_records is not None:
        _check_sized("eval_records", eval_records)
    if not callable(source) or isinstance(source, type):
        raise TypeError(f"source: needs an object such as StoredSource(), got {source!r}")
    if not callable(objective):
        raise TypeError(f"objective: needs an object such as pairwise(dpo_loss), got {objective!r}")
    check_rewards(source, objective)
    if config.shard and has_own_forward(objective) and objective.fixed_first:
        raise ValueError(f"shard: needs False for {kind_of(objective)}, whose processes run the model unequally often")
    if "policy_chosen_logps" in inspect.signature(objective).parameters:
        name = getattr(objective, "__name__", "loss")
        raise TypeError(f"objective: needs an object such as pairwise({name}), got the loss {name} itself")


def check_rewards(source: Any, objective: Any) -> None:
    """Raise ValueError where one of the two is of reinforcement learning and the other is known not to be."""
    needs, gives = has_own_forward(objective) and objective.needs_rewards, gives_rewards(source)
    if gives and not needs:
        raise ValueError(f"objective: needs rloo() or ppo() for {kind_of(source)}, got {kind_of(objective)}")
    if needs and not gives and is_offline(source):
        raise ValueError(
            f"source: needs rewards for {kind_of(objective)}, as RolloutSource gives, got {kind_of(source)}"
        )


def _check_sized(name: str, records: Any) -> None:
    if not hasattr(records, "__len__") or not hasattr(records, "__getitem__") or isinstance(records, (str, Mapping)):
        raise TypeError(f"{name}: needs a list or a dataset with a length, got {type(records).__name__}")
