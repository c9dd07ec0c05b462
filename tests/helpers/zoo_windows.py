"""Tiny models whose layers see less, or more, than all that came before: windows, chunks, prefixes, whole images."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from helpers.tiny_models import (
    LLAVA_PROCESSING,
    LLAVA_TEMPLATE,
    built,
    image_processor,
    text_settings,
    tokenizer,
    vision_settings,
)
from helpers.zoo_parts import (
    FULL,
    SLIDING,
    MinimalProcessor,
    chatml,
    chatml_tokenizer,
    plain_vision,
    siglip_settings,
    square,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig


@cache
def llava_mistral_sliding() -> tuple[Any, Any]:
    """LLaVA over Mistral: every layer sees a window shorter than the prompt."""
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    images = image_processor("clip", size={"shortest_edge": 48}, crop_size=square(48))
    config = transformers.LlavaConfig(
        vision_config=vision_settings(48),
        text_config=text_settings(model_type="mistral", vocab_size=len(words), sliding_window=24),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return built(transformers.LlavaForConditionalGeneration, config, words), transformers.LlavaProcessor(
        images, words, **LLAVA_PROCESSING
    )


@cache
def gemma3() -> tuple[Any, Any]:
    """Sliding layers and a full one; the tokens of an image see each other both ways."""
    words = chatml_tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    images = image_processor("gemma3", size=square(32), do_pan_and_scan=False)
    processor = transformers.Gemma3Processor(images, words, chatml("<start_of_image>"), image_seq_length=16)
    text = text_settings(
        vocab_size=len(words),
        num_hidden_layers=3,
        head_dim=32,
        query_pre_attn_scalar=32,
        layer_types=[SLIDING, FULL, SLIDING],
        sliding_window=20,
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=siglip_settings(32),
        mm_tokens_per_image=16,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        initializer_range=0.14,
        tie_word_embeddings=False,
    )
    model = built(transformers.Gemma3ForConditionalGeneration, config, words)
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
        image_processor("siglip", size=square(32)),
        words,
        LLAVA_TEMPLATE,
        "<image>",
        lambda features, index: "<image>" * 16,
        lambda inputs: inputs.update(token_type_ids=torch.zeros_like(inputs["input_ids"])),
    )
    config = transformers.PaliGemmaConfig(
        text_config=text_settings(vocab_size=len(words), head_dim=32, **text),
        vision_config=siglip_settings(32),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vocab_size=len(words),
        hidden_size=128,
        projection_dim=128,
        tie_word_embeddings=False,
    )
    return built(transformers.PaliGemmaForConditionalGeneration, config, words), processor


COHERE2 = {
    "model_type": "cohere2",
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
    "sliding_window": 20,
    "logit_scale": 1.0,
}


@cache
def aya_vision() -> tuple[Any, Any]:
    """Tiles; Cohere 2 as the decoder, with sliding layers and a full one that has no positions."""
    marks = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    words = chatml_tokenizer("<image>", *marks)
    processor = transformers.AyaVisionProcessor(
        image_processor("got_ocr2", size=square(32), max_patches=4),
        words,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=chatml("<image>"),
    )
    config = transformers.AyaVisionConfig(
        text_config=text_settings(vocab_size=len(words), **COHERE2),
        vision_config=siglip_settings(32),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=False,
    )
    return built(transformers.AyaVisionForConditionalGeneration, config, words), processor


@cache
def llama4() -> tuple[Any, Any]:
    """Chunked layers and a full one without positions; experts; the decoder is a causal language model."""
    return _llama4(floor_scale=8192)


@cache
def llama4_temperature() -> tuple[Any, Any]:
    """The layer without positions scales its queries by how many tokens it was given before them, hidden or not, on
    every 8th of them rather than, as in the published models, on every 8192nd."""
    return _llama4(floor_scale=8)


def _siglip_processor(words: Any, size: int, marker: str, expanded: str) -> MinimalProcessor:
    """Writes the same tokens for every image; the families' own processors of images need torchvision."""
    images = image_processor("siglip", size=square(size))
    return MinimalProcessor(images, words, chatml(marker), marker, lambda features, index: expanded)


def _llama4(floor_scale: int) -> tuple[Any, Any]:
    marks = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>")
    words = chatml_tokenizer(*marks)
    expanded = "<|image_start|><|image|>" + "<|patch|>" * 16 + "<|image_end|>"
    processor = _siglip_processor(words, 64, "<|image|>", expanded)
    text = text_settings(
        vocab_size=len(words),
        **{"num_hidden_layers": 3, "head_dim": 32, "intermediate_size_mlp": 96, "num_local_experts": 3},
        **{"moe_layers": [1], "no_rope_layers": [1, 0, 1], "attention_chunk_size": 16, "floor_scale": floor_scale},
    )
    vision = {
        **plain_vision(64),
        "intermediate_size": 128,  # of what the pixel shuffle makes of the hidden size
        "projector_input_dim": 48,
        "projector_output_dim": 48,
        "vision_output_dim": 48,
    }
    config = transformers.Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
    )
    return built(transformers.Llama4ForConditionalGeneration, config, words), processor


@cache
def cohere2_vision() -> tuple[Any, Any]:
    """Cohere 2 as in Aya Vision; its own image processor needs torchvision, GOT-OCR's cuts the same tiles."""
    words = chatml_tokenizer(
        image_token="<|IMG_PATCH|>",
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    images = image_processor("got_ocr2", size=square(32), crop_to_patches=True, max_patches=4)
    images.patch_size = 2  # tokens on each side of a tile
    config = transformers.Cohere2VisionConfig(
        text_config=text_settings(vocab_size=len(words), **COHERE2),
        vision_config=siglip_settings(32),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )
    processor = transformers.Cohere2VisionProcessor(images, words, chat_template=chatml("<|IMG_PATCH|>"))
    return built(transformers.Cohere2VisionForConditionalGeneration, config, words), processor


@cache
def gemma4() -> tuple[Any, Any]:
    """Sliding layers, and full ones with larger heads; the last two layers use the keys and values of those before
    them; every layer adds an embedding of its own of each token, which for an image token is that of the padding."""
    return _gemma4(
        num_hidden_layers=4,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=16,
    )


@cache
def gemma4_bidirectional() -> tuple[Any, Any]:
    """Sliding layers, where the tokens of an image see each other both ways, and a full one, where they do not and
    keys are values."""
    return _gemma4(
        num_hidden_layers=3,
        layer_types=[SLIDING, SLIDING, FULL],
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )


def _gemma4(**text: Any) -> tuple[Any, Any]:
    """Writes what Gemma 4's own processor would, which needs one for videos."""
    words = chatml_tokenizer(image_token="<|image|>", boi_token="<|image>", eoi_token="<image|>")
    processor = MinimalProcessor(
        image_processor("gemma4", patch_size=4, max_soft_tokens=70),
        words,
        chatml("<|image|>"),
        "<|image|>",
        lambda features, i: "<|image>" + "<|image|>" * int(features["num_soft_tokens_per_image"][i]) + "<image|>",
        lambda inputs: inputs.update(mm_token_type_ids=(inputs["input_ids"] == words.image_token_id).long()),
        ("num_soft_tokens_per_image",),
    )
    vision = {**plain_vision(32), "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
    config = transformers.Gemma4Config(
        text_config=text_settings(
            vocab_size=len(words),
            vocab_size_per_layer_input=len(words),
            head_dim=32,
            global_head_dim=64,
            sliding_window=20,
            tie_word_embeddings=False,
            **text,
        ),
        vision_config={**vision, "position_embedding_size": 256},
        image_token_id=words.image_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        initializer_range=0.14,
        tie_word_embeddings=False,
    )
    return built(transformers.Gemma4ForConditionalGeneration, config, words), processor


class TinyTowerConfig(Gemma3nVisionConfig):
    model_type = "tiny_tower"


class TinyTower(transformers.PreTrainedModel):
    """In the place of Gemma 3n's vision tower, which needs timm."""

    config_class = TinyTowerConfig

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__(config)
        self.patches = torch.nn.Conv2d(3, config.hidden_size, kernel_size=8, stride=8)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values))


transformers.AutoModel.register(TinyTowerConfig, TinyTower)


@cache
def gemma3n() -> tuple[Any, Any]:
    """Four states of each token side by side, of which each layer predicts and corrects all; the last two layers use
    the keys and values of those before them; an embedding of its own of each token for every layer."""
    words = chatml_tokenizer("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<audio_soft_token>")
    expanded = "<start_of_image>" + "<image_soft_token>" * 16 + "<end_of_image>"
    processor = _siglip_processor(words, 32, "<start_of_image>", expanded)
    text = text_settings(
        vocab_size=len(words),
        vocab_size_per_layer_input=len(words),
        hidden_size_per_layer_input=16,
        num_hidden_layers=4,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        laurel_rank=8,
        head_dim=32,
        sliding_window=20,
    )
    audio = {"hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "input_feat_size": 32}
    config = transformers.Gemma3nConfig(
        text_config=text,
        vision_config=TinyTowerConfig(hidden_size=32, vocab_size=8, vocab_offset=len(words)),
        audio_config={**audio, "sscp_conv_channel_size": [8, 4], "vocab_size": 8, "vocab_offset": len(words) + 8},
        vision_soft_tokens_per_image=16,
        image_token_id=words.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_id=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=words.convert_tokens_to_ids("<end_of_image>"),
        audio_token_id=words.convert_tokens_to_ids("<audio_soft_token>"),
        initializer_range=0.14,
        tie_word_embeddings=False,
    )
    return built(transformers.Gemma3nForConditionalGeneration, config, words), processor


BUILDERS = (
    llava_mistral_sliding,
    gemma3,
    paligemma,
    paligemma2,
    aya_vision,
    cohere2_vision,
    llama4,
    llama4_temperature,
    gemma4,
    gemma4_bidirectional,
    gemma3n,
)
