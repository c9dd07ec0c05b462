"""Tiny models that differ in their decoder: what it takes besides embeddings, its experts, its positions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from helpers import tiny_models as tiny
from helpers.zoo_parts import MinimalProcessor, chatml, chatml_tokenizer, plain_vision, square


@cache
def blip2() -> tuple[Any, Any]:
    """OPT, whose learned positions come from counting what the mask shows, unless they are given."""
    words = tiny.tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    processor = MinimalProcessor(
        tiny.image_processor("blip", size=square(32)),
        words,
        tiny.LLAVA_TEMPLATE,
        "<image>",
        lambda features, index: "<image>" * 16,
    )
    config = transformers.Blip2Config(
        text_config={
            **tiny.text_settings(model_type="opt", vocab_size=len(words)),
            "ffn_dim": 96,
            "word_embed_proj_dim": 128,
            "init_std": 0.14,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        },
        vision_config={**plain_vision(32), "initializer_range": 0.02},
        qformer_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "cross_attention_frequency": 1,
        },
        num_query_tokens=16,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        initializer_range=0.14,
    )
    model = tiny.built(transformers.Blip2ForConditionalGeneration, config, words)
    torch.nn.init.normal_(model.query_tokens)  # all alike as tiny.built
    return model, processor


@cache
def ernie4_5_vl_moe() -> tuple[Any, Any]:
    """Positions of three axes; experts of their own for image tokens and for those around an image."""
    names = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    words = chatml_tokenizer(**names)
    processor = tiny.images_only(transformers.Ernie4_5_VLMoeProcessor)(
        tiny.image_processor("ernie4_5_vl_moe", patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}),
        words,
        chat_template=chatml("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    config = transformers.Ernie4_5_VLMoeConfig(
        text_config=tiny.text_settings(
            vocab_size=len(words),
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 6, 4]},
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
            tie_word_embeddings=False,
        ),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8},
        **{f"{name}_id": getattr(words, f"{name}_id") for name in names},
        tie_word_embeddings=False,
    )
    return tiny.built(transformers.Ernie4_5_VLMoeForConditionalGeneration, config, words), processor


@cache
def kimi_k25() -> tuple[Any, Any]:
    """DeepSeek V3: latent attention with values smaller than keys; experts. Its image processor needs torchvision."""
    words = chatml_tokenizer("<|media_pad|>", "<|media_video|>", "<|media_begin|>", "<|media_end|>")

    flat = tiny.image_processor(
        "qwen2_vl", patch_size=8, merge_size=2, temporal_patch_size=1, min_pixels=256, max_pixels=4096
    )

    def patches(images: list[Any], return_tensors: str) -> dict[str, Any]:
        features = flat(images, return_tensors=return_tensors)
        return {**features, "pixel_values": features["pixel_values"].unflatten(1, (3, 8, 8))}

    def expand(features: dict[str, Any], index: int) -> str:
        count = int(features["image_grid_thw"][index].prod()) // 4
        return "<|media_begin|>" + "<|media_pad|>" * count + "<|media_end|>"

    config = transformers.Kimi_K25Config(
        text_config=tiny.text_settings(
            model_type="deepseek_v3",
            vocab_size=len(words),
            num_key_value_heads=4,
            **{"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24},
            **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 32, "first_k_dense_replace": 1},
        ),
        vision_config={**plain_vision(64), "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32,
        image_token_id=words.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|media_video|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|media_end|>"),
        tie_word_embeddings=False,
    )
    processor = MinimalProcessor(patches, words, chatml("<|media_pad|>"), "<|media_pad|>", expand)
    return tiny.built(transformers.Kimi_K25ForConditionalGeneration, config, words), processor


@cache
def granite4_vision() -> tuple[Any, Any]:
    """Image tokens are nothing at first: every decoder layer adds visual features of its own."""
    words = chatml_tokenizer("<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    processor = transformers.Granite4VisionProcessor(
        tiny.image_processor("llava_next", size={"shortest_edge": 32}, crop_size=square(32), image_grid_pinpoints=grid),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        downsample_rate="1/2",
        chat_template=chatml("<image>"),
    )
    config = transformers.Granite4VisionConfig(
        text_config=tiny.text_settings(
            vocab_size=len(words), num_hidden_layers=3, attention_multiplier=0.2, residual_multiplier=0.5
        ),
        vision_config={**tiny.vision_settings(32), "hidden_size": 64},
        qformer_config={"num_hidden_layers": 1, "intermediate_size": 48, "cross_attention_frequency": 1},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2],
    )
    return tiny.built(transformers.Granite4VisionForConditionalGeneration, config, words), processor


BUILDERS = (blip2, ernie4_5_vl_moe, kimi_k25, granite4_vision)
