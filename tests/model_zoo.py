"""More tiny random vision-language models, in the manner of `tiny_models`: one builder for each family."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tiny_models import (
    LLAVA_PROCESSING,
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    built,
    images_only,
    qwen,
    text_settings,
    tokenizer,
    vision_settings,
)
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SLIDING, FULL = "sliding_attention", "full_attention"


class MinimalProcessor:
    """For families whose own processor cannot serve: puts `expand(features, i)` in the place of the i-th `marker`.

    features: the image processor's output, which goes to the model, less its `private` entries.
    finish: adds to the finished inputs what else the model takes.
    """

    def __init__(
        self,
        image_processor: Any,
        words: PreTrainedTokenizerFast,
        chat_template: str,
        marker: str,
        expand: Callable[[Any, int], str],
        finish: Callable[[dict[str, Any]], None] = lambda inputs: None,
        private: tuple[str, ...] = (),
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = words
        self.chat_template = chat_template
        self._marker, self._expand, self._finish, self._private = marker, expand, finish, private

    def __call__(
        self, text: list[str], images: list[Any], return_tensors: str = "pt", padding: bool = True
    ) -> dict[str, Any]:
        features = dict(self.image_processor(images, return_tensors=return_tensors))
        pieces = text[0].split(self._marker)
        whole = pieces[0] + "".join(self._expand(features, i) + piece for i, piece in enumerate(pieces[1:]))
        inputs = dict(self.tokenizer([whole], return_tensors=return_tensors, return_token_type_ids=False))
        inputs.update({name: value for name, value in features.items() if name not in self._private})
        self._finish(inputs)
        return inputs

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> Any:
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        if not tokenize:
            return text
        parts = [part for message in messages for part in message["content"]]
        return self([text], [part["image"] for part in parts if part["type"] == "image"], return_tensors)


def chatml(image: str) -> str:
    """A chat template that writes `image` for each image."""
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def chatml_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """With <pad>, the tokens of `chatml`, the `special` ones and those that it keeps as attributes under a name."""
    words = tokenizer(("<pad>", "<|im_start|>", "<|im_end|>", *special, *named.values()), "<|im_end|>")
    for name, token in named.items():
        setattr(words, name, token)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(token))
    return words


def siglip_settings(size: int) -> dict[str, Any]:
    return {**vision_settings(size), "model_type": "siglip_vision_model", "vision_use_head": False}


def square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


@cache
def llava_mistral_sliding() -> tuple[Any, Any]:
    """LLaVA over Mistral: every layer sees a window shorter than the prompt."""
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=square(48))
    config = LlavaConfig(
        vision_config=vision_settings(48),
        text_config=text_settings(model_type="mistral", vocab_size=len(words), sliding_window=24),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return built(LlavaForConditionalGeneration, config, words), LlavaProcessor(images, words, **LLAVA_PROCESSING)


@cache
def llava_onevision() -> tuple[Any, Any]:
    """Over Qwen2; tiles of an image and an image_newline vector for each row of them."""
    words = tokenizer(("<pad>", "</s>", "<image>", "<video>"), "</s>")
    grid = [[24, 48], [48, 24], [48, 48]]
    processor = images_only(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size=square(24), image_grid_pinpoints=grid),
        words,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        vision_config=siglip_settings(24),
        text_config=text_settings(model_type="qwen2", vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return built(LlavaOnevisionForConditionalGeneration, config, words), processor


@cache
def qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2}
    return qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, {"mrope_section": [4, 6, 6]}, vision)


@cache
def gemma3() -> tuple[Any, Any]:
    """Sliding layers and a full one; the tokens of an image see each other both ways."""
    words = chatml_tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    images = Gemma3ImageProcessorPil(size=square(32), do_pan_and_scan=False)
    processor = Gemma3Processor(images, words, chatml("<start_of_image>"), image_seq_length=16)
    text = text_settings(
        vocab_size=len(words),
        num_hidden_layers=3,
        head_dim=32,
        query_pre_attn_scalar=32,
        layer_types=[SLIDING, FULL, SLIDING],
        sliding_window=20,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=siglip_settings(32),
        mm_tokens_per_image=16,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        initializer_range=0.14,
        tie_word_embeddings=False,
    )
    model = built(Gemma3ForConditionalGeneration, config, words)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.14)  # zeros as built
    return model, processor


@cache
def paligemma() -> tuple[Any, Any]:
    """A prefix language model: what has token type 0, images and prompt, is seen from everywhere."""
    return _paligemma(model_type="gemma")


@cache
def paligemma2() -> tuple[Any, Any]:
    """PaliGemma over Gemma 2: sliding layers and a full one, attention scores with a soft cap."""
    model, processor = _paligemma(
        model_type="gemma2",
        num_hidden_layers=3,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=2.0,
        layer_types=[SLIDING, FULL, SLIDING],
        sliding_window=20,
    )
    model.set_attn_implementation("eager")  # SDPA knows no soft cap
    return model, processor


def _paligemma(**text: Any) -> tuple[Any, Any]:
    """The processor is not PaliGemma's own, which knows no conversation and ends every text with a new line."""
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    processor = MinimalProcessor(
        SiglipImageProcessorPil(size=square(32)),
        words,
        LLAVA_TEMPLATE,
        "<image>",
        lambda features, index: "<image>" * 16,
        lambda inputs: inputs.update(token_type_ids=torch.zeros_like(inputs["input_ids"])),
    )
    config = PaliGemmaConfig(
        text_config=text_settings(vocab_size=len(words), head_dim=32, **text),
        vision_config=siglip_settings(32),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vocab_size=len(words),
        hidden_size=128,
        projection_dim=128,
        tie_word_embeddings=False,
    )
    return built(PaliGemmaForConditionalGeneration, config, words), processor


_BUILDERS = (
    llava_mistral_sliding,
    llava_onevision,
    qwen2_vl,
    gemma3,
    paligemma,
    paligemma2,
)
ZOO = {builder.__name__: builder for builder in _BUILDERS}
