"""The same samples however the steps are run: row counts, paths, growth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.fake_cuda import FakeCuda
from helpers.plain import IMAGES, PROMPTS, REFERENCES

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.decoding import Branch, kept, steps
from mmbdhs.decoding.engine import DecodingEngine, Slots
from mmbdhs.decoding.kv_cache import Extents, bucket
from mmbdhs.decoding.steps import EagerSteps, GraphSteps


class PaddedSteps(EagerSteps):
    """As GraphSteps pads, without graphs: rounded row counts, and prefixes read as far as the stores reach."""

    def run(self, live: Sequence[Branch]) -> torch.Tensor:
        cache, rows = self.engine.cache, bucket(len(live))
        cache.reserve(Extents(rows, max(branch.stored for branch in live) + 1, cache.extents.prefix))
        return self.engine.step(rows, cache.extents.prefix)[: len(live)]


def long_is_alike(first: list[str], second: list[str]) -> list[float]:
    """Half of the pairs go on to the second, unguided iteration while the others end."""
    return [float(len(reference) > 10) for reference in second]


def sample(model: Any, processor: Any, temperature: float, max_branches: int = 64) -> list:
    config = BDHSConfig(
        mask_threshold=0.5,
        temperature=temperature,
        max_sentence_tokens=8,
        max_new_tokens=12,
        max_iterations=2,
        seed=11,
        max_branches=max_branches,
    )
    return bdhs_sample(model, processor, IMAGES, PROMPTS, REFERENCES, config, long_is_alike)


@pytest.mark.parametrize(("family", "temperature"), [("llava", 1.0), ("qwen2_5_vl", 0.0)])
@pytest.mark.parametrize("path", ["native", "sdpa"])
def test_samples_do_not_depend_on_how_steps_run(
    path: str, family: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = getattr(tiny_models, family)()
    monkeypatch.setenv("MMBDHS_ATTENTION", "sdpa")
    expected = sample(model, processor, temperature)
    assert {result.guided for result in expected} == {True, False}
    monkeypatch.setenv("MMBDHS_ATTENTION", path)
    for kind in (EagerSteps, PaddedSteps):
        monkeypatch.setattr(kept, "EagerSteps", kind)
        for max_branches in (1, 5, 64):
            assert sample(model, processor, temperature, max_branches) == expected


def test_graphs_are_captured_again_when_tensors_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be reserved, so every store grows as it must; and every shape is captured at its first use."""
    model, processor = tiny_models.llava()
    expected = sample(model, processor, 1.0)
    cuda = FakeCuda(monkeypatch, memory=0)
    monkeypatch.setattr(steps, "_USES_BEFORE_CAPTURE", 1)
    assert sample(model, processor, 1.0, max_branches=5) == expected
    assert len(cuda.captures) > 4 and cuda.replays


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_replay_what_eager_steps_do(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    model = copy.deepcopy(model).cuda()
    with monkeypatch.context() as patch:
        patch.setattr(kept, "takes_graphs", lambda device: False)
        expected = sample(model, processor, temperature)
    captured = []
    capture = GraphSteps._capture

    def watch(self: GraphSteps, *arguments: Any) -> torch.Tensor:
        chosen = capture(self, *arguments)
        captured.append(self._capturable)
        return chosen

    monkeypatch.setattr(GraphSteps, "_capture", watch)
    monkeypatch.setattr(steps, "_USES_BEFORE_CAPTURE", 2)
    for _ in range(2):  # the second call replays what the first captured
        assert sample(model, processor, temperature) == expected
    assert captured and all(captured)


def test_nothing_is_drawn_on_the_host_between_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step never asks for a value: no `item`, no `tolist`, no truth of a tensor."""
    model, processor = tiny_models.llava()
    monkeypatch.setenv("MMBDHS_ATTENTION", "sdpa")
    step = DecodingEngine.step

    def refuse(*_: Any) -> None:
        raise AssertionError("a step waits for the device")

    def watched(self: DecodingEngine, *arguments: Any) -> torch.Tensor:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
                patch.setattr(torch.Tensor, name, refuse)
            return step(self, *arguments)

    sample(model, processor, 1.0)  # the probe and its own choices are done
    monkeypatch.setattr(DecodingEngine, "step", watched)
    assert len(sample(model, processor, 1.0)) == 4


def test_slots_keep_their_rows_when_they_grow_and_move() -> None:
    slots = Slots.empty(torch.device("cpu"))

    def rows(*numbers: int) -> dict[str, torch.Tensor]:
        vector = torch.tensor(numbers)
        square = vector[:, None].expand(-1, numbers[0])
        wide = dict.fromkeys(("tokens", "uniforms", "start"), square)
        return wide | dict.fromkeys(("first_index", "length", "forced", "last", "prefix_count", "prompt_index"), vector)

    slots.fill(0, **rows(2, 3))
    slots.fill(2, **rows(5, 7, 11))
    assert slots.length.tolist()[:5] == [2, 3, 5, 7, 11]
    assert slots.tokens[1].tolist()[:5] == [3, 3, 0, 0, 0] and slots.uniforms[4].tolist()[:5] == [11.0] * 5
    slots.move(torch.tensor([4]), torch.tensor([1]), free=3)
    for column in slots.columns().values():
        first = column if column.dim() == 1 else column[:, 0]
        assert first.tolist() == [2, 11, 5] + [0] * (len(first) - 3)
