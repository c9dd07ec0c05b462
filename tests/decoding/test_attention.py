"""Attention of a decoding step: both paths against float64, the interface's refusals, the choice of a path."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from mmbdhs import BDHSConfig, UnsupportedModelError, bdhs_sample
from mmbdhs.decoding import autotune
from mmbdhs.decoding.attention import DecodeAttention
from mmbdhs.decoding.attention_paths import DecodeBatch, Path, native_path, sdpa_path
from mmbdhs.decoding.autotune import choose_path
from mmbdhs.decoding.kv_cache import BranchCacheLayer, BranchKVCache, Extents
from mmbdhs.native import backend
from mmbdhs.vlm import VLM, LayerShape
from mmbdhs.vlm.attention_interface import LayerCall
from mmbdhs.vlm.mask_rules import CAUSAL, IMPLEMENTATION, MaskRule, rule_mask
from mmbdhs.vlm.text_decoder import find_text_decoder

SLOTS, PLACES, SIZE = 6, 5, 32
PREFIXES = [0, 7, 11, 30]  # offsets of three prompts
COUNTS, EXAMPLES, OWN = [7, 2, 19, 0, 4], [0, 0, 2, 1, 1], [0, 3, 1, 0, 4]  # of five rows; OWN: the newest key's place

# Where the tokens stand in their whole sequences: every other token of the prompts, and each suffix after its own.
INDICES = [2 * place for begin, end in pairwise(PREFIXES) for place in range(end - begin)]
FIRST = [2 * count + 5 for count in COUNTS] + [0]


def draw_step(
    query_heads: int, kv_heads: int, scale: float = 1.0, softcap: float = 0.0
) -> tuple[BranchCacheLayer, LayerCall, DecodeBatch]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    query = draw(len(COUNTS), query_heads, 1, SIZE)
    key, value = draw(2, len(COUNTS), kv_heads, 1, SIZE)
    layer = BranchCacheLayer(key, value)
    for store in layer.stores:
        store.resize(Extents(SLOTS, PLACES, PREFIXES[-1] + 3))
        store.sequence.copy_(draw(*store.sequence.shape))
    counts, examples, offsets = (torch.tensor(x, dtype=torch.int32) for x in (COUNTS, EXAMPLES, PREFIXES))
    first, indices = torch.tensor(FIRST), torch.tensor(INDICES)
    extents = Extents(SLOTS, PLACES, PREFIXES[-1])
    batch = DecodeBatch(torch.tensor(OWN), counts, examples, offsets, extents, first, indices)
    return layer, LayerCall(torch.nn.Identity(), query, key, value, None, scale, softcap), batch


def softmax_attention(layer: BranchCacheLayer, call: LayerCall, row: int) -> Tensor:
    """One row's attention in float64, its keys laid out by hand: [Hq, D]."""
    query, key, value = call.query, call.key, call.value
    begin = PREFIXES[EXAMPLES[row]]

    def seen(store: Any, newest: Tensor) -> Tensor:
        own = store.suffix[row, :, : OWN[row]]
        parts = [store.prefix[:, begin : begin + COUNTS[row]], own, newest[row]]
        return torch.cat(parts, dim=1).double().repeat_interleave(query.shape[1] // key.shape[1], dim=0)

    keys, values = seen(layer.key_store, key), seen(layer.value_store, value)
    scores = (keys @ query[row, :, 0, :, None].double())[..., 0] * call.scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return (scores.softmax(dim=-1)[:, None] @ values)[:, 0]


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("path", [native_path, sdpa_path])
def test_rows_see_their_prompt_and_themselves(path: Path, heads: tuple[int, int], softcap: float) -> None:
    layer, call, batch = draw_step(*heads, 0.3, softcap)
    expected = torch.stack([softmax_attention(layer, call, row) for row in range(len(COUNTS))])
    found = path(layer, call, batch)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("path", [native_path, sdpa_path])
def test_what_is_not_finite_stays_in_its_row(path: Path, which: str, poison: float) -> None:
    clean = path(*draw_step(4, 2))
    layer, call, batch = draw_step(4, 2)
    getattr(call, which)[1, 0, 0, 5] = poison
    found = path(layer, call, batch)
    others = [0, 2, 3, 4]
    torch.testing.assert_close(found[others], clean[others], rtol=0, atol=0)
    assert not found[1].isfinite().all()
    _, call, batch = draw_step(4, 2)  # the next step, over what was stored
    again = path(layer, call, batch)
    torch.testing.assert_close(again[others], clean[others], rtol=0, atol=0)


@pytest.fixture
def decoding() -> Iterator[tuple[DecodeAttention, BranchKVCache, DecodeBatch, tuple[Tensor, Tensor, Tensor]]]:
    """Attention switched on for a decoder, and the interface's arguments for one layer of it."""
    layer, call, rows = draw_step(4, 2)
    stores = BranchKVCache(torch.device("cpu"))
    stores.layers = [layer]
    yield DecodeAttention(VLM.of(tiny_models.llava()[0]), stores), stores, rows, (call.query, call.key, call.value)


def attend(*arguments: Any, **more: Any) -> Tensor:
    return AttentionInterface()[IMPLEMENTATION](torch.nn.Identity(), *arguments, **{"attention_mask": None, **more})[0]


def test_the_interface_hands_over_what_a_layer_asks_for(decoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBDHS_ATTENTION", "sdpa")
    attention, stores, rows, (query, key, value) = decoding
    with attention.over(rows):
        stores.update(key, value, 0)
        found = attend(query, key, value, scaling=0.2, softcap=2.0, position_ids=rows.suffix_positions, use_cache=True)
    expected = sdpa_path(*draw_step(4, 2, 0.2, 2.0))
    assert found.shape == (len(COUNTS), 1, 4, SIZE) and torch.equal(found[:, 0], expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"s_aux": torch.zeros(4)},
        {"position_bias": torch.zeros(1)},
        {"dropout": 0.1},
    ],
)
def test_what_would_change_attention_is_refused(asked: dict[str, Any], decoding: Any) -> None:
    attention, stores, rows, (query, key, value) = decoding
    (name,) = asked
    with pytest.raises(UnsupportedModelError, match=rf"asks for \['{name}'\]"), attention.over(rows):
        stores.update(key, value, 0)
        attend(query, key, value, **asked)


def test_keys_changed_after_the_cache_are_refused(decoding: Any) -> None:
    attention, stores, rows, (query, key, value) = decoding
    with pytest.raises(UnsupportedModelError, match="that were handed to the cache"), attention.over(rows):
        stores.update(key, value, 0)
        attend(query, key * 2, value)
    with pytest.raises(UnsupportedModelError, match="that were handed to the cache"), attention.over(rows):
        attend(query, key, value)


def test_masks_made_otherwise_are_refused(decoding: Any) -> None:
    attention, stores, rows, (query, key, value) = decoding
    stores.update(key, value, 0)
    with pytest.raises(UnsupportedModelError, match="mask functions"), attention.over(rows):
        attend(query, key, value, attention_mask=torch.ones(5, 1, 1, 9))


@pytest.mark.parametrize("window", [1, 3, 12, 100])
def test_windows_are_counted_by_the_indices_in_the_whole_sequence(window: int, decoding: Any) -> None:
    attention, stores, rows, (query, key, value) = decoding
    rule = MaskRule(and_masks(causal_mask_function, sliding_window_overlay(window)))
    with attention.over(rows):
        stores.update(key, value, 0)
        found = attend(query, key, value, attention_mask=rule_mask(rule, 5, 1, 9, "cpu"))
    layer, call, _ = draw_step(4, 2)
    query, key, value = call.query, call.key, call.value
    for row, (count, own) in enumerate(zip(COUNTS, OWN, strict=True)):
        last, begin = FIRST[row] + own, PREFIXES[EXAMPLES[row]]
        prefix = [place for place in range(begin, begin + count) if INDICES[place] > last - window]
        suffix = [place for place in range(own) if FIRST[row] + place > last - window]
        keys, values = (
            torch.cat([store.prefix[:, prefix], store.suffix[row][:, suffix], newest[row]], dim=1)
            for store, newest in ((layer.key_store, key), (layer.value_store, value))
        )
        expected = functional.scaled_dot_product_attention(query[row][None], keys[None], values[None], enable_gqa=True)
        torch.testing.assert_close(found[row], expected[0].transpose(0, 1), rtol=0, atol=2e-6)


CONFIG = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=1)


def sample(model: Any, processor: Any) -> list:
    arguments = [picture(0)], ["Describe it."], ["A red car. A dog."]
    return bdhs_sample(model, processor, *arguments, CONFIG, lambda a, b: [0.0] * len(a))


def test_attention_beside_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    sample(model, processor)  # probed
    layer = find_text_decoder(model).layers[1].self_attn
    forward = type(layer).forward

    def with_sdpa(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.config._attn_implementation = "sdpa"  # the context restores it
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", with_sdpa.__get__(layer))
    with pytest.raises(UnsupportedModelError, match=r"in every layer .* got 1 of 2 layers"):
        sample(model, processor)


def test_the_models_own_implementation_returns() -> None:
    model, processor = tiny_models.llava()
    seen = set()
    layer = find_text_decoder(model).layers[0]
    config = find_text_decoder(model).config
    handle = layer.register_forward_pre_hook(lambda *_: seen.add(config._attn_implementation))
    VLM.of(model).forget_checks()
    sample(model, processor)
    handle.remove()
    assert seen == {"sdpa", IMPLEMENTATION}  # the former in what the probe compares with
    assert config._attn_implementation == "sdpa"


def test_a_decoder_that_decodes_otherwise_is_caught_by_the_probe() -> None:
    """It takes a single token to stand one place further on."""
    model, processor = tiny_models.llava()
    VLM.of(model).forget_checks()

    def shift(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        single = kwargs["inputs_embeds"].shape[1] == 1
        return args, kwargs | {"position_ids": kwargs["position_ids"] + 1} if single else kwargs

    handle = find_text_decoder(model).register_forward_pre_hook(shift, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match="decoding a token against doing so at once: by 0"):
        sample(model, processor)
    handle.remove()
    sample(model, processor)


def test_an_error_restores_the_implementation(decoding: Any) -> None:
    attention, _, rows, _ = decoding
    config = find_text_decoder(tiny_models.llava()[0]).config
    with pytest.raises(KeyError), attention.over(rows):
        assert config._attn_implementation == IMPLEMENTATION
        raise KeyError
    assert config._attn_implementation == "sdpa"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No override, no choice made yet; and none kept."""
    monkeypatch.delenv("MMBDHS_ATTENTION", raising=False)
    autotune._chosen.cache_clear()
    yield monkeypatch
    autotune._chosen.cache_clear()


def choose(size: int = 32, value_size: int | None = None, dtype: torch.dtype = torch.float32) -> Path:
    query, key = torch.zeros(3, 4, 1, size, dtype=dtype), torch.zeros(3, 2, 1, size, dtype=dtype)
    value = key.new_zeros(3, 2, 1, value_size or size)
    return choose_path(LayerCall(torch.nn.Identity(), query, key, value, None, 1.0, 0.0), CAUSAL)


@pytest.mark.parametrize(("faster", "path"), [("native", native_path), ("sdpa", sdpa_path)])
def test_the_faster_path_is_chosen_and_announced_once(
    faster: str, path: Path, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = {"native": 0.002, "sdpa": 0.002} | {faster: 0.001}
    fresh.setattr(autotune, "_TIMED", ("cpu",))
    fresh.setattr(autotune, "_measure", lambda shape: times)
    fresh.setattr(backend, "live", lambda: backend.Backend("native", "a test"))
    with caplog.at_level(logging.INFO, "mmbdhs"):
        assert choose() is choose() is path
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"on the {faster} path" in message and "4/2 heads of size 32" in message
    assert f"native {times['native'] * 1e3:.3f} ms, sdpa {times['sdpa'] * 1e3:.3f} ms" in message


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"size": 16}, "head size of 32 … 256 in steps of 8, got 16"),
        ({"value_size": 64}, "one head size and dtype"),
        ({"dtype": torch.float64}, "dtype float32, bfloat16 or float16"),
    ],
)
def test_shapes_that_the_op_does_not_take(
    shape: dict[str, Any], reason: str, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mmbdhs"):
        assert choose(**shape) is sdpa_path
    assert reason in caplog.records[-1].getMessage()
    fresh.setenv("MMBDHS_ATTENTION", "native")
    with pytest.raises(ValueError, match=f"MMBDHS_ATTENTION must be 'sdpa' for this model, .*{reason}"):
        choose(**shape)


def test_no_clock_decides_on_a_cpu(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fresh.setattr(autotune, "_measure", lambda shape: pytest.fail("timed"))
    fresh.setattr(backend, "live", lambda: backend.Backend("native", "a test"))
    with caplog.at_level(logging.INFO, "mmbdhs"):
        assert choose() is native_path
    assert "the op takes this shape" in caplog.records[-1].getMessage()


def test_the_plain_definition_is_not_timed(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(backend, "live", lambda: backend.Backend("reference", "a test"))
    assert choose() is sdpa_path


def test_a_device_without_kernels_takes_sdpa(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fresh.setattr(backend, "kernel_obstacle", lambda device: "the CUDA kernels need compute capability 8.0")
    with caplog.at_level(logging.INFO, "mmbdhs"):
        assert choose() is sdpa_path
    assert "sdpa path" in caplog.records[-1].getMessage() and "capability 8.0" in caplog.records[-1].getMessage()


def test_an_op_that_fails_is_not_taken(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("shared_prefix_attention: CUDA launch failed: no kernel image")

    fresh.setattr(backend, "live", lambda: backend.Backend("native", "a test"))
    fresh.setattr(autotune, "_TIMED", ("cpu",))
    fresh.setitem(autotune._PATHS, "native", fails)
    with caplog.at_level(logging.INFO, "mmbdhs"):
        assert choose() is sdpa_path
    assert "no kernel image" in caplog.records[-1].getMessage()


def test_the_override(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MMBDHS_ATTENTION", "native")
    assert autotune.override() == "native" and choose() is native_path
    fresh.setenv("MMBDHS_ATTENTION", "sdpa")
    assert choose() is sdpa_path
    fresh.setenv("MMBDHS_ATTENTION", "fast")
    with pytest.raises(ValueError, match="MMBDHS_ATTENTION must be 'native' or 'sdpa', got 'fast'"):
        choose()


def test_measuring_times_both_paths() -> None:
    shape = LayerShape(4, 2, 32, 32, (torch.float32,) * 3, torch.device("cpu"), 1, True)
    times = autotune._measure(shape)
    assert list(times) == ["native", "sdpa"] and all(seconds > 0 for seconds in times.values())


def test_measuring_leaves_the_callers_draws_alone() -> None:
    shape = LayerShape(4, 2, 32, 32, (torch.float32,) * 3, torch.device("cpu"), 1, True)
    before = torch.get_rng_state()
    autotune._measure(shape)
    assert torch.equal(torch.get_rng_state(), before)
