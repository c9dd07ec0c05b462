"""One model with several users: generators side by side, threads, and callers with settings of their own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, scene_records
from torch import nn

from mmbdhs import BDHSConfig, iter_bdhs_samples, iter_responses
from mmbdhs.sampling import sampler
from mmbdhs.vlm import VLM

RECORDS = scene_records(12)
IMAGES, CHOSEN = ([record[name] for record in RECORDS] for name in ("images", "chosen"))
PROMPTS = [record["prompt"] for record in RECORDS]
KEYS = [record["key"] for record in RECORDS]
CONFIG = BDHSConfig(max_iterations=1, max_sentence_tokens=6, max_branches=8)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


class Dropped(nn.Module):
    """A module followed by dropout, which changes every number in training mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.inner(x))


@pytest.fixture
def dropping() -> tuple[Any, Any]:
    """A model in training mode that would not sample the same there."""
    model, processor = fresh_miniature()
    for layer in model.get_decoder().layers:
        layer.mlp = Dropped(layer.mlp)
    return model.train(), processor


def stream(model: Any, processor: Any, count: int = len(RECORDS)) -> Iterator[Any]:
    columns = [column[:count] for column in (IMAGES, PROMPTS, CHOSEN)]
    return iter_bdhs_samples(model, processor, *columns, CONFIG, unlike, KEYS[:count])


def test_the_mode_is_restored_by_the_last_of_several_generators(dropping: Any) -> None:
    model = dropping[0]
    alone = dict(stream(*dropping))
    assert model.training
    first, second = stream(*dropping, 2), stream(*dropping)
    next(first)
    found = dict([next(second)])
    list(first)
    assert not model.training  # the second is still at work
    assert found | dict(second) == alone
    assert all(module.training for module in model.modules())


def test_generators_that_are_closed_or_fail_restore_the_mode(dropping: Any) -> None:
    model = dropping[0]
    first, second = stream(*dropping), stream(*dropping)
    next(first), next(second)
    first.close()
    assert not model.training
    second.close()
    assert model.training

    def fails(responses: list[str], references: list[str]) -> list[float]:
        raise RuntimeError("no similarity")

    with pytest.raises(RuntimeError, match="no similarity"):
        list(iter_bdhs_samples(*dropping, IMAGES, PROMPTS, CHOSEN, CONFIG, fails))
    assert model.training


def test_a_caller_may_train_between_samples(dropping: Any) -> None:
    model = dropping[0]
    alone, found = dict(stream(*dropping)), {}
    for index, sample in stream(*dropping):
        found[index] = sample
        model.train()
    assert found == alone and all(module.training for module in model.modules())


def test_autocast_and_gradients_are_the_callers_between_samples(dropping: Any) -> None:
    responses = iter_responses(*dropping, IMAGES[:3], PROMPTS[:3], CONFIG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for generator in (stream(*dropping, 3), responses):
            seen = [(torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()) for _ in generator]
            assert seen == [(True, True)] * 3
        suspended = stream(*dropping)
        next(suspended)
    suspended.close()
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


def test_threads_take_turns(dropping: Any) -> None:
    alone = dict(stream(*dropping))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: dict(stream(*dropping)), range(4)))
    assert together == [alone] * 4
    assert dropping[0].training and not VLM.of(dropping[0])._holders


def test_finished_pairs_are_freed_without_the_cyclic_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 pairs; no more are alive than fit into the pool and wait to be scored."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Pair(sampler._Pair):
        def __post_init__(self) -> None:
            made.add(self)

    monkeypatch.setattr(sampler, "_Pair", Pair)
    model, processor = fresh_miniature()
    columns = (iter([RECORDS[0][name]] * 500) for name in ("images", "prompt"))
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=2, max_branches=8)
    gc.collect()
    gc.disable()
    try:
        for _ in iter_bdhs_samples(model, processor, *columns, ("A car." for _ in range(500)), config, unlike):
            most = max(most, len(made))
        left = len(made)
    finally:
        gc.enable()
    assert most <= config.max_branches + sampler._SCORED_TOGETHER + 1 and left <= 1
