"""Tiny models whose layers mix tokens in other ways than by attention over the sequence."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from helpers.tiny_models import LLAVA_TEMPLATE, built, image_processor, qwen, text_settings, tokenizer
from helpers.zoo_parts import FULL, MinimalProcessor, chatml, chatml_tokenizer, siglip_settings, square


@cache
def mllama() -> tuple[Any, Any]:
    """No image tokens in the sequence: one of the layers attends to the image features instead."""
    words = chatml_tokenizer("<|image|>", "<|python_tag|>", "<s>")
    words.bos_token = "<s>"
    images = image_processor("mllama", size=square(32))
    config = transformers.MllamaConfig(
        text_config=text_settings(
            vocab_size=len(words), num_hidden_layers=3, cross_attention_layers=[1], pad_token_id=words.pad_token_id
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
        },
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    model = built(transformers.MllamaForConditionalGeneration, config, words)
    layer = model.model.language_model.layers[1]
    for gate in (layer.cross_attn_attn_gate, layer.cross_attn_mlp_gate):
        torch.nn.init.ones_(gate)  # closed as built
    return model, transformers.MllamaProcessor(images, words, chatml("<|image|>"))


@cache
def lfm2_vl() -> tuple[Any, Any]:
    """Convolution layers, which mix neighbouring tokens; not its own processor: that of images needs torchvision."""
    words = chatml_tokenizer("<image>", "<|image_start|>", "<|image_end|>")
    patches = image_processor("siglip2", patch_size=8, max_num_patches=48)

    def expand(features: dict[str, Any], index: int) -> str:
        return "<|image_start|>" + "<image>" * 12 + "<|image_end|>"

    def even(images: list[Any], return_tensors: str) -> dict[str, Any]:
        return patches([image.resize((64, 48)) for image in images], return_tensors=return_tensors)

    config = transformers.Lfm2VlConfig(
        text_config=text_settings(
            model_type="lfm2",
            vocab_size=len(words),
            num_hidden_layers=3,
            layer_types=["conv", FULL, "conv"],
            block_auto_adjust_ff_dim=False,
        ),
        vision_config={**siglip_settings(64), "model_type": "siglip2_vision_model", "num_patches": 64},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    processor = MinimalProcessor(even, words, chatml("<image>"), "<image>", expand)
    return built(transformers.Lfm2VlForConditionalGeneration, config, words), processor


@cache
def qwen3_5() -> tuple[Any, Any]:
    """Linear attention layers, whose state has no positions; full ones with positions over half of each head."""
    return qwen(
        transformers.Qwen3_5ForConditionalGeneration,
        transformers.Qwen3_5Config,
        {"mrope_section": [2, 3, 3], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
        {"out_hidden_size": 128, "num_position_embeddings": 64},
        num_hidden_layers=3,
        layer_types=["linear_attention", FULL, "linear_attention"],
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )


@cache
def florence2() -> tuple[Any, Any]:
    """An encoder takes images and prompt; the decoder, BART's, attends to what it makes of them. Not its own
    processor, which knows no conversation."""
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    images = image_processor("siglip", size=square(32))
    config = transformers.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(words),
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": 1024,
            "init_std": 0.14,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "decoder_start_token_id": 1,
        },
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": 128,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        initializer_range=0.14,
        tie_word_embeddings=False,
    )
    processor = MinimalProcessor(images, words, LLAVA_TEMPLATE, "<image>", lambda features, index: "<image>" * 17)
    return built(transformers.Florence2ForConditionalGeneration, config, words), processor


BUILDERS = (mllama, lfm2_vl, qwen3_5, florence2)
