"""The same samples however the steps are run: row counts, steps per check, paths, growth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from helpers import tiny_models
from helpers.plain import IMAGES, PROMPTS, REFERENCES

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.decoding import branch_pool
from mmbdhs.decoding.cuda_graphs import EagerSteps, GraphSteps
from mmbdhs.decoding.engine import DecodingEngine, Slots
from mmbdhs.decoding.kv_cache import bucket


class PaddedSteps(EagerSteps):
    """As GraphSteps pads, without graphs: rounded row counts, and prefixes read as far as the stores reach."""

    def rows(self, live: int) -> int:
        return bucket(live)

    def run(self, rows: int, count: int) -> torch.Tensor:
        prefix = self._engine.cache.extents.prefix
        return torch.stack([self._engine.step(rows, prefix) for _ in range(count)])


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


def use_steps(monkeypatch: pytest.MonkeyPatch, steps: type, per_check: int) -> None:
    chosen = type("Steps", (steps,), {"per_check": per_check})
    monkeypatch.setattr(branch_pool, "steps_for", chosen)


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
    for steps, per_check, max_branches in (
        (EagerSteps, 1, 1),
        (EagerSteps, 3, 64),
        (PaddedSteps, 1, 5),
        (PaddedSteps, 3, 64),
        (PaddedSteps, 8, 5),
    ):
        use_steps(monkeypatch, steps, per_check)
        assert sample(model, processor, temperature, max_branches) == expected


class PretendedGraph:
    """Captures by noting the steps, and replays by running them, if all that they touch is where it was."""

    def __init__(self) -> None:
        self.steps: list[tuple[DecodingEngine, tuple]] = []

    def addresses(self) -> list[int]:
        decoding = self.steps[0][0]
        stores = [store.sequence for layer in decoding.cache.layers for store in layer.stores]
        columns = decoding.slots.columns().values()
        return [tensor.data_ptr() for tensor in (*stores, *columns, decoding.cache.prefix_offsets)]

    @contextmanager
    def capture(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        step = DecodingEngine.step
        with monkeypatch.context() as patch:
            patch.setattr(DecodingEngine, "step", lambda *arguments: self.note(step, *arguments))
            yield
        self.captured = self.addresses()

    def note(self, step: Callable, decoding: DecodingEngine, *arguments: int) -> torch.Tensor:
        self.steps.append((decoding, arguments))
        before = decoding.slots.length.clone(), decoding.slots.tokens.clone()
        chosen = step(decoding, *arguments)
        decoding.slots.length.copy_(before[0])
        decoding.slots.tokens.copy_(before[1])
        return chosen

    def replay(self) -> None:
        assert self.addresses() == self.captured, "a tensor of the captured steps was replaced"
        self.chosen.copy_(torch.stack([decoding.step(*arguments) for decoding, arguments in self.steps]))


def test_graphs_are_captured_anew_when_tensors_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    expected = sample(model, processor, 1.0)
    graphs = []

    def build() -> PretendedGraph:
        graphs.append(PretendedGraph())
        return graphs[-1]

    capture = GraphSteps._capture

    def link(self: GraphSteps, rows: int, count: int) -> None:
        capture(self, rows, count)
        graph, graph.chosen = self._graphs[rows, count]

    monkeypatch.setattr(GraphSteps, "_capture", link)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", build)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: graph.capture(monkeypatch))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    use_steps(monkeypatch, GraphSteps, 3)
    assert sample(model, processor, 1.0, max_branches=5) == expected
    assert len(graphs) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_replay_what_eager_steps_do(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    model = copy.deepcopy(model).cuda()
    use_steps(monkeypatch, EagerSteps, 1)
    expected = sample(model, processor, temperature)
    captured = []
    capture = GraphSteps._capture

    def watch(self: GraphSteps, *arguments: Any) -> None:
        capture(self, *arguments)
        captured.append(self._capturable)

    monkeypatch.setattr(GraphSteps, "_capture", watch)
    use_steps(monkeypatch, GraphSteps, 8)
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
    slots.move([4], [1], free=3)
    for column in slots.columns().values():
        first = column if column.dim() == 1 else column[:, 0]
        assert first.tolist() == [2, 11, 5] + [0] * (len(first) - 3)
