"""Models of transformers attend through `masked_attention`: as with "eager" and "sdpa", or refused by name."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from helpers.families import BUILDERS, GROUPS, IMAGES, PROMPTS
from helpers.plain import masked_logits, prompt_inputs
from helpers.whole_forwards import assert_equal_gradients, gradients
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from mmbdhs import UnsupportedModelError, register_attention
from mmbdhs.vlm import registered_attention

TOLERANCE = 2e-5  # of logits near 4, in float32 and after up to four layers
CAUSAL = [
    *GROUPS["causal attention"],
    *GROUPS["experts"],
    *GROUPS["M-RoPE (three rows of positions)"],
    *GROUPS["image features added inside layers"],
    *GROUPS["recurrent or convolutional layers"],
    "chameleon",
]
WINDOWED = ["llava_mistral_sliding", "aya_vision", "cohere2_vision", "gemma3n", "gemma4", "llama4"]
BOTH_WAYS = ["gemma3", "gemma4_bidirectional", "paligemma", "paligemma2"]
VISIBLE = (1, 4)  # image tokens
NAME = "mmbdhs"


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register_attention()
    register_attention()  # once more is no harm


def attending(model: Any, implementation: str) -> Any:
    """A copy of the model with another attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def text_model(model_class: str = "Llama", **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.14}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{model_class}Config")(**sizes | heads | tokens | settings)
    return getattr(transformers, f"{model_class}ForCausalLM")(config).eval()


def text_inputs(padding: str = "left", length: int = 23) -> dict[str, Tensor]:
    """Three rows: hidden tokens in the middle of each, and padding of 0, 4 and 9 tokens."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 99, (3, length)), torch.ones(3, length, dtype=torch.int64)
    mask[0, 5:12], mask[1, 8:13], mask[2, 11:13] = 0, 0, 0
    for row, count in ((1, 4), (2, 9)):
        mask[row, slice(0, count) if padding == "left" else slice(length - count, length)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def image_inputs(family: str) -> tuple[Any, dict[str, Any]]:
    """A model, and a prompt of two images of which two tokens are visible. For Qwen, which counts positions by the
    mask and the images' sizes, all image tokens are visible and some text is not."""
    model, processor = BUILDERS[family]()
    inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[1])
    if "qwen" in family:
        inputs["attention_mask"][0, -9:-2] = 0
        return model, inputs
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    inputs["attention_mask"][0, image] = 0
    inputs["attention_mask"][0, image[list(VISIBLE)]] = 1
    return model, inputs


@pytest.mark.parametrize("family", CAUSAL)
def test_logits_under_hidden_image_tokens(family: str) -> None:
    model, processor = BUILDERS[family]()
    inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[1])
    found = masked_logits(attending(model, NAME), inputs, VISIBLE, [7, 8, 9, 10])
    for other in ("eager", "sdpa"):
        expected = masked_logits(attending(model, other), inputs, VISIBLE, [7, 8, 9, 10])
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    seen = masked_logits(attending(model, NAME), inputs, (1, 4, 5), [7, 8, 9, 10])
    assert (found - seen).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (WINDOWED, r"all visible keys, got windows or chunks of \d+ tokens, and \d+ keys"),
        (BOTH_WAYS, "a mask rule of its own .images that see themselves both ways"),
    ],
)
def test_masks_that_hide_by_place_are_refused(families: list[str], message: str) -> None:
    for family in families:
        model, processor = BUILDERS[family]()
        inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[1])
        with pytest.raises(UnsupportedModelError, match=message):
            masked_logits(attending(model, NAME), inputs, VISIBLE, [7])


@pytest.mark.parametrize("window", [4, 22, 23, 24, 100])
@torch.no_grad()
def test_a_window_is_exact_where_it_holds_all_tokens(window: int) -> None:
    model, inputs = text_model("Mistral", sliding_window=window), text_inputs()
    ours = attending(model, NAME)
    if window < 23:
        with pytest.raises(UnsupportedModelError, match=f"chunks of {window} tokens, and 23 keys"):
            ours(**inputs)
        return
    _assert_seen_rows(ours(**inputs).logits, attending(model, "eager")(**inputs).logits, inputs)


@torch.no_grad()
def test_new_tokens_pass_the_end_of_a_window() -> None:
    """A prompt within the window, and tokens beyond it one by one."""
    model, inputs = text_model("Mistral", sliding_window=24), text_inputs()
    found, expected = (
        attending(model, name).generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        for name in (NAME, "eager")
    )
    assert torch.equal(found, expected)


def _assert_seen_rows(found: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> None:
    """Logits of tokens that see a key agree."""
    seeing = inputs["attention_mask"].cumsum(1) > 0
    assert found.isfinite().all()
    torch.testing.assert_close(found[seeing], expected[seeing], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Llama", {"num_key_value_heads": 1}),
        ("Llama", {"head_dim": 40}),
        ("Gemma2", {"attn_logit_softcapping": 2.0, "head_dim": 32, "query_pre_attn_scalar": 50}),
    ],
)
@torch.no_grad()
def test_padded_batches(model_class: str, settings: dict[str, Any], padding: str) -> None:
    model, inputs = text_model(model_class, **settings), text_inputs(padding)
    found = attending(model, NAME)(**inputs).logits
    _assert_seen_rows(found, attending(model, "eager")(**inputs).logits, inputs)
    if model_class == "Llama":
        _assert_seen_rows(found, attending(model, "sdpa")(**inputs).logits, inputs)


@torch.no_grad()
def test_hiding_tokens_is_leaving_them_out() -> None:
    model, inputs = text_model(), text_inputs()
    positions = torch.arange(23)[None]
    found = attending(model, NAME)(**inputs, position_ids=positions.expand(3, -1)).logits
    for row in range(3):
        kept = inputs["attention_mask"][row] == 1
        ids = inputs["input_ids"][row, kept][None]
        alone = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions[:, kept]).logits[0]
        torch.testing.assert_close(found[row, kept], alone, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_without_a_mask() -> None:
    model, ids = text_model(), text_inputs()["input_ids"]
    expected = attending(model, "eager")(ids).logits
    torch.testing.assert_close(attending(model, NAME)(ids).logits, expected, rtol=0, atol=TOLERANCE)


def test_queries_that_see_nothing_get_0() -> None:
    q, k, v = (torch.randn(2, heads, 5, 32) for heads in (4, 2, 2))
    visible = torch.tensor([[False, False, True, True, True], [False] * 5])
    attend = AttentionInterface()[NAME]
    out, weights = attend(torch.nn.Identity(), q, k, v, visible, scaling=0.2)
    assert out.shape == (2, 5, 4, 32) and weights is None
    assert not out[0, :2].any() and not out[1].any() and out[0, 2:].any(dim=-1).all()


def test_a_mask_has_one_entry_for_a_key() -> None:
    make = AttentionMaskInterface()[NAME]
    mask = make(batch_size=3, q_length=23, kv_length=23, attention_mask=text_inputs()["attention_mask"].bool())
    assert mask.shape == (3, 23) and mask.dtype == torch.bool


@pytest.mark.parametrize("split", [1, 7, 22])
@torch.no_grad()
def test_a_prompt_in_two_parts(split: int) -> None:
    """Several queries over longer keys."""
    model, inputs = text_model(), text_inputs()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = torch.arange(23)[None].expand(3, -1)
    ours, cache = attending(model, NAME), DynamicCache()
    ours(ids[:, :split], attention_mask=mask[:, :split], position_ids=positions[:, :split], past_key_values=cache)
    second = ours(ids[:, split:], attention_mask=mask, position_ids=positions[:, split:], past_key_values=cache)
    whole = attending(model, "eager")(**inputs, position_ids=positions).logits
    seeing = mask.cumsum(1)[:, split:] > 0
    torch.testing.assert_close(second.logits[seeing], whole[:, split:][seeing], rtol=0, atol=TOLERANCE)


GENERATION = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("family", ["text", "llava", "llava_next", "qwen2_5_vl", "smolvlm"])
def test_generate_gives_the_same_tokens(family: str, way: str) -> None:
    model, inputs = (text_model(), text_inputs()) if family == "text" else image_inputs(family)
    texts = {}
    for name in (NAME, "eager", "sdpa"):
        torch.manual_seed(0)
        options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0, **GENERATION[way]}
        texts[name] = attending(model, name).generate(**inputs, **options)
    assert torch.equal(texts[NAME], texts["eager"]) and torch.equal(texts[NAME], texts["sdpa"])


def learned(model: Any, inputs: dict[str, Any], implementation: str, checkpoints: bool = False) -> dict[str, Tensor]:
    """The gradients of a training step. No loss comes from queries that see nothing."""
    model = attending(model, implementation).train()
    if checkpoints:
        model.gradient_checkpointing_enable()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(1) <= 1, -100)
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("family", ["text", "llava", "llava_next", "qwen2_5_vl", "smolvlm"])
def test_gradients_of_a_training_step(family: str, checkpoints: bool) -> None:
    model, inputs = (text_model(), text_inputs()) if family == "text" else image_inputs(family)
    found = learned(model, inputs, NAME, checkpoints)
    for other in ("eager", "sdpa"):
        assert_equal_gradients(found, learned(model, inputs, other))


def test_gradients_of_adapters() -> None:
    peft = pytest.importorskip("peft")
    model, inputs = image_inputs("llava")
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(model), config)
    found, expected = (learned(model, inputs, name) for name in (NAME, "eager"))
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_as_close_as_eager(dtype: torch.dtype) -> None:
    model, inputs = text_model(), text_inputs()
    model = model.to(dtype).float()  # the same weights in both
    seeing = inputs["attention_mask"].cumsum(1) > 0
    truth = attending(model, "eager")(**inputs).logits[seeing]
    ours, eager = (
        (attending(model.to(dtype), name)(**inputs).logits[seeing].float() - truth).abs().max()
        for name in (NAME, "eager")
    )
    assert ours <= 2 * eager


def test_a_compiled_model_has_no_graph_break() -> None:
    model, inputs = attending(text_model(), NAME), text_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


def test_the_log_names_each_path_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered_attention, "_ANNOUNCED", set())
    model, inputs = image_inputs("llava")
    with caplog.at_level(logging.INFO, "mmbdhs"):
        for _ in range(2):
            attending(model, NAME)(**inputs)
    assert [record.message for record in caplog.records if record.message.startswith("the attention of")] == [
        "the attention of CLIPAttention runs in PyTorch's SDPA: it is not causal, or has no mask",
        "the attention of LlamaAttention runs in mmbdhs::masked_attention",
    ]


def test_a_part_of_a_model_can_attend_so() -> None:
    model, inputs = image_inputs("llava")
    one, other = attending(model, NAME), attending(model, "sdpa")
    other.set_attn_implementation({"text_config": NAME})
    assert other.config.vision_config._attn_implementation == "sdpa"
    torch.testing.assert_close(other(**inputs).logits, one(**inputs).logits, rtol=0, atol=0)


REFUSED = {
    "attention weights": ({}, {"output_attentions": True}, r"asks for \['output_attentions'\]"),
    "packed sequences": (
        {},
        {"attention_mask": None, "position_ids": torch.arange(23)[None].expand(3, -1) % 8, "use_cache": False},
        "packed sequences",
    ),
    "4-D mask": (
        {},
        {"attention_mask": torch.ones(3, 1, 23, 23).bool()},
        r"2 dimensions .* LlamaAttention got .*23, 23",
    ),
    "dropout": ({"attention_dropout": 0.1}, {}, r"asks for \['dropout'\]"),
    "small heads": ({"head_dim": 16}, {}, "LlamaAttention .* needs a head size of 32 … 256 in steps of 8, got 16"),
    "odd heads": ({"head_dim": 36}, {}, "needs a head size of 32 … 256 in steps of 8, got 36"),
    "large heads": ({"head_dim": 264}, {}, "needs a head size of 32 … 256 in steps of 8, got 264"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_op_has_not_is_refused(what: str) -> None:
    settings, arguments, message = REFUSED[what]
    model = attending(text_model(**settings), NAME).train()
    with pytest.raises(UnsupportedModelError, match=message):
        model(**{**text_inputs(), **arguments})


def test_double_precision_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"float32, bfloat16 or float16, got torch\.float64"):
        attending(text_model().double(), NAME)(**text_inputs())


@pytest.mark.parametrize(
    "asked", [{"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}, {"cache": object()}, {"is_causal": False}]
)
def test_layers_that_ask_for_more_are_refused(asked: dict[str, Any]) -> None:
    (name,) = asked
    operands = [torch.randn(1, 4, 5, 32) for _ in range(3)]
    with pytest.raises(UnsupportedModelError, match=f"Identity asks for .'{name}"):
        AttentionInterface()[NAME](torch.nn.Identity(), *operands, torch.ones(1, 5).bool(), **asked)


@pytest.mark.gpu
def test_logits_and_gradients_on_a_device() -> None:
    model = text_model().cuda()
    inputs = {name: value.cuda() for name, value in text_inputs().items()}
    found, expected = (attending(model, name)(**inputs).logits for name in (NAME, "eager"))
    seeing = inputs["attention_mask"].cumsum(1) > 0
    torch.testing.assert_close(found[seeing], expected[seeing], rtol=0, atol=1e-3)
    ours, eager = (learned(model, inputs, name) for name in (NAME, "eager"))
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3)
