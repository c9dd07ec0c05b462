"""Captured steps: when they are captured, on which stream, what they reserve, and what becomes of them between calls.

Streams and graphs are pretended (helpers/fake_cuda.py); the `gpu` tests of test_engine.py use real ones.
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.fake_cuda import FakeCuda
from helpers.preference_records import fresh_miniature, scene_records
from peft import LoraConfig, get_peft_model
from torch import nn

from mmbdhs import BDHSConfig, bdhs_sample, iter_bdhs_samples
from mmbdhs.decoding import Branch, BranchPool, TokenChooser, release, steps
from mmbdhs.decoding.cuda_graphs import GraphRecorder, as_graph, obstacle_to_graphs
from mmbdhs.decoding.engine import DecodingEngine
from mmbdhs.decoding.kv_cache import Extents
from mmbdhs.vlm import VLM, DecoderInputs

RECORDS = scene_records(8)
COLUMNS = [[record[name] for record in RECORDS] for name in ("images", "prompt", "chosen")]
CONFIG = BDHSConfig(max_iterations=2, max_sentence_tokens=8, max_new_tokens=20, max_branches=4)


@pytest.fixture
def miniature() -> tuple[Any, Any]:
    return fresh_miniature()


def half_alike(responses: list[str], references: list[str]) -> list[float]:
    """Some pairs go on to the second, unguided iteration, whose responses need more places than were reserved."""
    return [float(len(reference) % 2) for reference in references]


def sample(model: Any, processor: Any) -> list[Any]:
    return bdhs_sample(model, processor, *COLUMNS, CONFIG, half_alike)


# Counted: 64 branches, five sentences for each pair, sentences of 10.8 tokens on average.


def count(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, pairs: int) -> tuple[float, float]:
    """Samples so many pairs without a model. Returns captures ÷ steps, and how much of the slots' steps was used."""
    chance = np.random.default_rng(pairs)
    layer = torch.zeros(1, 100, 1)

    def prefill(self: DecodingEngine, prompts: list[DecoderInputs]) -> list[Any]:
        return [(self.cache.add_prompt(p.indices, [(layer, layer)]), torch.zeros(len(p), 1)) for p in prompts]

    def step(self: DecodingEngine, rows: int, prefix: int) -> torch.Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    monkeypatch.setattr("helpers.fake_cuda.STEP", step)
    monkeypatch.setattr(DecodingEngine, "prefill", prefill)
    monkeypatch.setattr(DecodingEngine, "logits", lambda self, hidden: torch.zeros(len(hidden), 2))
    model, _ = tiny_models.llava()
    chooser, used = TokenChooser([], 0.0, 0, 1.0), 0
    pool: BranchPool[Branch] = BranchPool(
        VLM.of(model), 64, chooser, lambda live: [len(b.ids) >= b.limit for b in live]
    )
    places = torch.arange(100)
    prompt = DecoderInputs(torch.zeros(100, 1), places[None], places[:50], places, 100)
    waiting = [[Branch(100, int(limit)) for limit in chance.geometric(1 / 10.8, 5).clip(2, 64)] for _ in range(pairs)]
    while waiting or len(pool):
        if not len(pool) or pool.room >= 16:
            while waiting and pool.room > 0:
                pool.add([(prompt, waiting.pop())])
        used += min(64, len(pool._live) + len(pool._waiting))
        pool.step()
    return len(cuda.captures) / len(cuda.rows), used / sum(cuda.rows)


@pytest.mark.parametrize(("pairs", "most"), [(16, 0.2), (500, 0.02)])
def test_few_steps_are_captured_and_few_slots_run_for_nothing(
    pairs: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    captured, used = count(cuda, monkeypatch, pairs)
    assert captured <= most and used >= 0.88
    assert cuda.replays > len(cuda.rows) / 2 or pairs < 100


# Kept between two calls.


def test_a_second_call_replays_what_the_first_has_captured(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(*miniature)
    cuda = FakeCuda(monkeypatch)
    assert sample(*miniature) == expected
    captured, replays = len(cuda.captures), cuda.replays
    assert captured and replays
    assert sample(*miniature) == expected
    assert cuda.replays - replays > replays  # from the first step on
    later = len(cuda.captures)
    assert sample(*miniature) == expected and len(cuda.captures) == later


def test_two_generators_share_no_steps(miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(enumerate(sample(*miniature)))
    cuda = FakeCuda(monkeypatch)
    first, second = (iter_bdhs_samples(*miniature, *COLUMNS, CONFIG, half_alike) for _ in range(2))
    found: list[list[Any]] = [[], []]
    for one, other in zip(first, second, strict=True):
        found[0].append(one)
        found[1].append(other)
    assert [sorted(results, key=lambda result: result[0]) for results in found] == [expected] * 2
    assert cuda.captures


def change_adapter(model: Any) -> None:
    model.adapter_names = ["other"]


def change_weights(model: Any) -> None:
    layer = model.get_decoder().layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def change_hooks(model: Any) -> None:
    model.get_decoder().layers[0].register_forward_hook(lambda *_: None)


def change_nothing(model: Any) -> None:
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():  # as an optimizer's step
            parameter.mul_(1.0)


@pytest.mark.parametrize("change", [change_adapter, change_weights, change_hooks, change_nothing])
def test_steps_are_kept_as_long_as_they_are_right(
    change: Any, miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = miniature
    expected = sample(*miniature)
    FakeCuda(monkeypatch)
    sample(*miniature)
    before = VLM.of(model).kept_steps.steps
    change(model)
    assert sample(*miniature) == expected
    assert (VLM.of(model).kept_steps.steps is before) == (change is change_nothing)


def test_an_adapter_is_switched_off_in_the_next_call(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = miniature
    lora = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False, lora_alpha=64))
    with lora.disable_adapter():
        without = sample(lora, processor)
    adapted = sample(lora, processor)
    FakeCuda(monkeypatch)
    assert sample(lora, processor) == adapted != without
    with lora.disable_adapter():
        assert sample(lora, processor) == without
    assert sample(lora, processor) == adapted


def test_kept_steps_are_freed_with_the_model_or_earlier(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    model, processor = miniature
    sample(model, processor)
    kept = weakref.ref(VLM.of(model).kept_steps.steps)
    release(model)
    assert kept() is None
    model, processor = fresh_miniature()
    sample(model, processor)
    kept = weakref.ref(VLM.of(model).kept_steps.steps)
    gc.collect()
    gc.disable()
    try:
        del model
        assert kept() is None
    finally:
        gc.enable()


def test_a_failure_leaves_no_steps_to_the_next_call(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(*miniature)
    FakeCuda(monkeypatch)

    def fails(responses: list[str], references: list[str]) -> list[float]:
        raise RuntimeError("no similarity")

    sample(*miniature)
    stream = iter_bdhs_samples(*miniature, *COLUMNS, CONFIG, half_alike)
    next(stream)
    stream.close()  # in the middle
    assert VLM.of(miniature[0]).kept_steps is None
    with pytest.raises(RuntimeError, match="no similarity"):
        bdhs_sample(*miniature, *COLUMNS, CONFIG, fails)
    assert sample(*miniature) == expected


# Captured on the right stream, or not at all.


def test_captures_run_on_a_stream_of_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.graph would take the stream of the first device for both."""
    cuda = FakeCuda(monkeypatch)
    rehearsed = []

    def work() -> torch.Tensor:
        rehearsed.append(cuda.streams[-1])
        return torch.zeros(1)

    for device in ("cuda:0", "cuda:1"):
        as_graph(work, torch.device(device))
    places = [(stream.device, mode) for stream, mode in cuda.captures]
    assert places == [(torch.device("cuda:0"), "thread_local"), (torch.device("cuda:1"), "thread_local")]
    assert rehearsed[0] is rehearsed[1] is cuda.captures[0][0] and rehearsed[2] is rehearsed[3] is cuda.captures[1][0]


class Waiting(nn.Module):
    """A module that asks the device for a number."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * (1.0 if x.isfinite().all().item() else torch.nan)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_model_that_waits_for_the_device_is_never_captured(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = miniature
    model.get_decoder().layers[1].mlp = Waiting(model.get_decoder().layers[1].mlp)
    expected = sample(model, processor)
    cuda = FakeCuda(monkeypatch)
    assert sample(model, processor) == expected
    assert not cuda.captures and cuda.mode == 0
    (warning,) = warnings_of(caplog)
    assert "without CUDA graphs" in warning and "wait for the device" in warning


def test_after_a_failed_capture_all_is_as_before(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sample(*miniature)
    cuda = FakeCuda(monkeypatch)
    cuda.fails, before = True, list(cuda.streams)
    ended: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *arguments: ended.append(arguments), raising=False)
    assert sample(*miniature) == expected
    assert len(cuda.captures) == len(ended) == 1 and cuda.streams == before and not cuda.replays
    (warning,) = warnings_of(caplog)
    assert "not permitted when stream is capturing" in warning


@pytest.mark.gpu
def test_a_device_recovers_from_a_failed_capture(miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal is made blind, so the capture itself meets the host's wait for the device."""
    model, processor = miniature
    model = copy.deepcopy(model).cuda()
    monkeypatch.setattr(steps, "_USES_BEFORE_CAPTURE", 1)
    expected = sample(model, processor)
    assert VLM.of(model).kept_steps.steps._graphs
    model.get_decoder().layers[1].mlp = Waiting(model.get_decoder().layers[1].mlp)
    monkeypatch.setattr(GraphRecorder, "rehearse", lambda self, work: (work(), False))
    stream = torch.cuda.current_stream()
    for _ in range(2):
        assert sample(model, processor) == expected
        assert torch.cuda.current_stream() == stream
        torch.cuda.empty_cache()
        assert torch.rand(1, device="cuda").isfinite()
    assert not VLM.of(model).kept_steps.steps._graphs


def test_models_that_are_spread_or_offloaded_are_not_captured(miniature: tuple[Any, Any]) -> None:
    model, _ = miniature
    assert obstacle_to_graphs(VLM.of(model)) == ""
    model.get_decoder().layers[0]._hf_hook = object()
    assert "Accelerate" in obstacle_to_graphs(VLM.of(model))
    model.get_decoder().layers[0].to("meta")
    assert obstacle_to_graphs(VLM.of(model)) == "its parameters are on cpu, meta"


# Room.


def test_room_is_reserved_beforehand_and_said(
    miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmbdhs")
    FakeCuda(monkeypatch)
    bdhs_sample(*miniature, *COLUMNS, BDHSConfig(max_iterations=1, max_sentence_tokens=8, max_branches=6), half_alike)
    (said,) = [record.getMessage() for record in caplog.records if "reserves" in record.getMessage()]
    extents = VLM.of(miniature[0]).kept_steps.steps.engine.cache.extents
    assert str(extents) in said and extents.slots == 6 and extents.suffix == 32
    assert extents.prefix > 6 * 20


@pytest.mark.parametrize("memory", [0, 300_000])
def test_without_memory_less_is_reserved_and_said(
    memory: int, miniature: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sample(*miniature)
    cuda = FakeCuda(monkeypatch, memory)
    assert sample(*miniature) == expected
    assert any("less than the Extents(" in warning for warning in warnings_of(caplog))
    assert len(cuda.captures) >= 1


def test_compaction_sends_one_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of layers, and of keys and values."""
    model, _ = tiny_models.llava()
    engine = DecodingEngine(VLM.of(model), TokenChooser([], 0.0, 0, 1.0))
    layers = [(torch.randn(2, 5, 4), torch.randn(2, 5, 4)) for _ in range(7)]
    for _ in range(3):
        engine.cache.add_prompt(torch.arange(5), layers)
    engine.cache.reserve(Extents(4, 8, 15))
    engine.fill_slots(0, [Branch(5, 3, prompt_index=2, start=(5,), first_index=5) for _ in range(4)])
    sent = []
    make = torch.tensor

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        sent.append(arguments)
        return make(*arguments, **options)

    monkeypatch.setattr(torch, "tensor", noted)
    engine.move([3], [1], free=3)
    assert len(sent) == 1
    sent.clear()
    engine.keep_prompts([0, 2], [1, 1, 1])
    assert len(sent) == 3  # the keys that stay, the offsets, the prompts of the slots
    assert engine.slots.prompt_index.tolist() == [1, 1, 1, 0]
    assert torch.equal(engine.cache.layers[6].key_store.prefix[:, 5:10], layers[6][0])
