"""What token ids mean to a model, and text of data that spells tokens which are not text."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
from helpers import tiny_models
from helpers.plain import picture
from helpers.preference_records import fresh_miniature
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mmbdhs import BDHSConfig, BDHSFailure, bdhs_sample, povid_sample, sample_responses
from mmbdhs.decoding import vision_token_ids
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs import encode_record, encode_responses, response_logps
from mmbdhs.vlm import VLM, Vocabulary, end_token_ids, vocabulary

# The published template of llava-hf/llava-1.5-7b-hf: an assistant turn ends with a space, and with no end of sequence.
LLAVA_15_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GOOD = "There is a red car."
SPELLED = {
    "llava": ["<image>", "<pad>", "</s>"],
    "llava_llama": ["<image>", "<pad>", "</s>", "<s>"],
    "qwen2_5_vl": [
        "<|image_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|video_pad|>",
        "<|im_end|>",
        "<|im_start|>",
    ],
}
CASES = [(family, token) for family, tokens in SPELLED.items() for token in tokens]


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


@pytest.mark.parametrize(("family", "token"), CASES)
@pytest.mark.parametrize("place", ["chosen", "rejected", "prompt"])
def test_records_that_spell_tokens_are_refused_whatever_column_holds_them(family: str, token: str, place: str) -> None:
    model, processor = getattr(tiny_models, family)()
    text = f"The {token} shows a dog."
    record = {"images": [picture(0)], "prompt": "Describe it.", "chosen": GOOD, "rejected": GOOD} | {place: text}
    column = "prompts" if place == "prompt" else place
    with pytest.raises(
        ExampleError, match=rf"^{column}: needs text, got the token '{token.replace('|', '[|]')}' in it"
    ):
        encode_record(model, processor, record)
    with pytest.raises(ExampleError, match="needs text, got the token"):  # also in a third response
        encode_responses(model, processor, picture(0), "Describe it.", [GOOD, GOOD, text])


@pytest.mark.parametrize(("family", "token"), CASES)
def test_sampling_skips_texts_that_spell_tokens(family: str, token: str) -> None:
    model, processor = getattr(tiny_models, family)()
    text, images, config = (
        f"A {token} dog. A cat.",
        [picture(0)] * 2,
        BDHSConfig(max_iterations=1, max_sentence_tokens=4),
    )
    found = bdhs_sample(model, processor, images, ["What?", text], [text, GOOD], config, unlike, on_error="skip")
    found += povid_sample(model, processor, images, ["What?", text], [text, GOOD], on_error="skip")
    found += sample_responses(model, processor, images[:1], [text], config, on_error="skip")
    reasons = [one.reason for one in found if isinstance(one, BDHSFailure)]
    assert [reason.split(":")[0] for reason in reasons] == ["references", "prompts", "references", "prompts", "prompts"]


@pytest.mark.parametrize(("family", "end"), [("llava", "</s>"), ("llava_llama", "</s>"), ("qwen2_5_vl", "<|im_end|>")])
def test_an_end_token_at_the_end_of_a_text_is_the_templates_own(family: str, end: str) -> None:
    model, processor = getattr(tiny_models, family)()
    ids = encode_responses(model, processor, picture(0), "What?", [GOOD, GOOD + end, f"{GOOD} {end}{end}\n"])[1]
    assert ids[0] == ids[1] == ids[2]
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=4, temperature=0.0)
    first, second = (
        bdhs_sample(model, processor, [picture(0)], ["What?"], [text], config, unlike, keys=[1])[0]
        for text in (GOOD, GOOD + end)
    )
    assert first == second


def test_words_that_only_look_like_tokens_are_text() -> None:
    model, processor = tiny_models.llava()
    texts = ["An < image > of a dog.", "a <img> tag, </ s> and <S>", "image"]
    assert len(encode_responses(model, processor, picture(0), "Is it <b>red</b>?", texts)[1]) == 3


def test_padding_with_a_mark_and_ends_that_are_no_tokens_forbid_no_text() -> None:
    model, processor = copy.deepcopy(tiny_models.llava())
    processor.tokenizer.pad_token = "!"
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, 10**6]
    ids = encode_responses(model, processor, picture(0), "Stop! What is it?", ["It says stop!", "Stop!</s>"])[1]
    assert [processor.tokenizer.decode(one).strip() for one in ids] == ["It says stop!</s>", "Stop!</s>"]


def test_image_tokens_and_fractions_are_no_response_tokens() -> None:
    model, processor = tiny_models.llava()
    inputs, _ = encode_responses(model, processor, picture(0), "What?", [GOOD])
    with pytest.raises(ValueError, match="responses: needs tokens of text, got the image token"):
        response_logps(model, [inputs], [[[5, model.config.image_token_id]]])
    with pytest.raises(ValueError, match=r"responses: needs token ids, got numbers of torch\.float32"):
        response_logps(model, [inputs], [[[1.7, 2.2]]])


@pytest.mark.parametrize("text", ["\ud800", "a dog \udcff.", "\udc00\ud800"])
def test_lone_surrogates_are_named(text: str) -> None:
    model, processor = tiny_models.llava()
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=4)
    for prompt, reference in (("What?", f"A dog. {text}"), (f"What? {text}", "A dog.")):
        found = bdhs_sample(model, processor, [picture(0)], [prompt], [reference], config, unlike, on_error="skip")[0]
        assert isinstance(found, BDHSFailure) and "lone surrogate U+D" in found.reason
        found.reason.encode()
    with pytest.raises(ExampleError, match="lone surrogate"):
        encode_responses(model, processor, picture(0), "What?", [GOOD, text + GOOD])


def with_holes(processor: Any, count: int) -> tuple[Any, set[str]]:
    """The miniature's tokenizer without some of its tokens, and those."""
    state = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    gone = set(sorted(token for token, number in state["model"]["vocab"].items() if 300 <= number < 380)[:count])
    pairs = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["model"]["merges"]]
    state["model"]["merges"] = [list(pair) for pair in pairs if not {*pair, "".join(pair)} & gone]
    for token in gone:
        del state["model"]["vocab"][token]
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return words, gone


def test_only_ids_that_no_token_has_are_suppressed() -> None:
    model, processor = fresh_miniature()
    words, gone = with_holes(processor, 40)
    full = processor.tokenizer.get_vocab()
    never = set(vision_token_ids(VLM.of(model), words))
    rows = model.get_output_embeddings().weight.shape[0]
    beyond = set(range(max(full.values()) + 1, rows))
    assert never == {full[token] for token in gone} | {full["<image>"]} | beyond
    words.add_tokens(["⟨new⟩"])  # an added token gets an id beyond the number of tokens
    model.resize_token_embeddings(max(words.get_vocab().values()) + 1)
    assert words.convert_tokens_to_ids("⟨new⟩") not in vision_token_ids(VLM.of(model), words)


def test_a_tokenizer_larger_than_the_embeddings_is_refused_before_anything_runs() -> None:
    model, processor = copy.deepcopy(tiny_models.llava())
    processor.tokenizer.add_tokens([f"⟨{number}⟩" for number in range(model.get_input_embeddings().num_embeddings)])
    arguments = (model, processor, [picture(0)], ["What?"], [GOOD])
    need = r"processor: needs a tokenizer with ids below the \d+ embeddings of LlavaFor\w+, got \d+ token"
    for run in (
        lambda: bdhs_sample(*arguments, None, unlike, on_error="skip"),
        lambda: povid_sample(*arguments, on_error="skip"),
        lambda: sample_responses(*arguments[:4], on_error="skip"),
        lambda: encode_responses(model, processor, picture(0), "What?", [GOOD]),
    ):
        with pytest.raises(ValueError, match=need) as raised:
            run()
        assert not isinstance(raised.value, ExampleError)


def test_a_response_ends_where_generation_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Where the template writes no end, the tokens are those of the original LLaVA: the text and </s>."""
    vocabulary._warn_once.cache_clear()
    model, processor = tiny_models.llava_llama()
    processor = copy.copy(processor)
    processor.chat_template = LLAVA_15_TEMPLATE
    texts = [GOOD, "No."]
    with caplog.at_level(logging.WARNING, logger="mmbdhs"):
        ids = [encode_responses(model, processor, picture(0), "Describe.", texts)[1] for _ in range(2)]
    assert [record.getMessage().count("'</s>' is appended") for record in caplog.records] == [1]
    (end,) = end_token_ids(VLM.of(model), processor.tokenizer)
    words = processor.tokenizer
    expected = [words(f"ASSISTANT: {text}")["input_ids"][len(words("ASSISTANT:")["input_ids"]) :] for text in texts]
    assert ids[0] == ids[1] == [[*tokens, end] for tokens in expected]
    written = encode_responses(model, processor, picture(0), "Describe.", texts, append_eos=False)[1]
    assert [words.decode(tokens) for tokens in written] == [f"{text} " for text in texts]


@pytest.mark.parametrize("family", ["llava", "llava_llama", "qwen2_5_vl"])
def test_templates_that_write_an_end_are_left_alone(family: str) -> None:
    model, processor = getattr(tiny_models, family)()
    arguments = (model, processor, picture(0), "Describe.", [GOOD, "No."])
    assert encode_responses(*arguments)[1] == encode_responses(*arguments, append_eos=False)[1]


@pytest.mark.parametrize("family", ["llava", "llava_llama", "qwen2_5_vl"])
def test_blank_ids_add_no_text(family: str) -> None:
    model, processor = getattr(tiny_models, family)()
    words = processor.tokenizer
    blank = set(Vocabulary.of(VLM.of(model), processor.tokenizer).blank_ids)
    assert end_token_ids(VLM.of(model), words) | {VLM.of(model).image_token_id} <= blank
    assert blank.issuperset(words("\n", add_special_tokens=False)["input_ids"])
    assert blank.isdisjoint(words("A red car.", add_special_tokens=False)["input_ids"])
