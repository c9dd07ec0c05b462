"""Tiny models that differ in how their images become tokens of the sequence."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from helpers.tiny_models import (
    LLAVA_PROCESSING,
    LLAVA_TEMPLATE,
    PATCH_VISION,
    QWEN3_ROPE,
    QWEN3_VISION,
    built,
    image_processor,
    images_only,
    qwen,
    text_settings,
    tokenizer,
    vision_settings,
)
from helpers.zoo_parts import MinimalProcessor, chatml, chatml_tokenizer, plain_vision, siglip_settings, square


@cache
def llava_onevision() -> tuple[Any, Any]:
    """Over Qwen2; tiles of an image and an image_newline vector for each row of them."""
    words = tokenizer(("<pad>", "</s>", "<image>", "<video>"), "</s>")
    grid = [[24, 48], [48, 24], [48, 48]]
    processor = images_only(transformers.LlavaOnevisionProcessor)(
        image_processor("llava_onevision", size=square(24), image_grid_pinpoints=grid),
        words,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip_settings(24),
        text_config=text_settings(model_type="qwen2", vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return built(transformers.LlavaOnevisionForConditionalGeneration, config, words), processor


@cache
def qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2}
    return qwen(
        transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, {"mrope_section": [4, 6, 6]}, vision
    )


@cache
def idefics3() -> tuple[Any, Any]:
    """Tiles of an image, between text tokens, and the whole of it at the end."""
    return _idefics3(transformers.Idefics3ForConditionalGeneration, transformers.Idefics3Config)


@cache
def smolvlm() -> tuple[Any, Any]:
    """With the processor of Idefics 3, which writes the same: SmolVLM's own needs num2words, for videos."""
    return _idefics3(transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMConfig)


def _idefics3(model_class: type, config_class: type) -> tuple[Any, Any]:
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    around = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    words = chatml_tokenizer("<image>", *around, *tiles)
    images = image_processor("idefics3", size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = transformers.Idefics3Processor(images, words, image_seq_len=4, chat_template=chatml("<image>"))
    config = config_class(
        text_config=text_settings(model_type="llama", vocab_size=len(words)),
        vision_config=plain_vision(32),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return built(model_class, config, words), processor


@cache
def glm4v() -> tuple[Any, Any]:
    """Positions of three axes, over half of each head."""
    return _glm(transformers.Glm4vForConditionalGeneration, transformers.Glm4vConfig)


def _glm(model_class: type, config_class: type, **text: Any) -> tuple[Any, Any]:
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    words = chatml_tokenizer(*names.values())
    processor = images_only(transformers.Glm4vProcessor)(
        image_processor("glm4v", patch_size=8, size={"shortest_edge": 512, "longest_edge": 8192}),
        words,
        chat_template=chatml("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    config = config_class(
        text_config=text_settings(vocab_size=len(words), rope_parameters=rope, **text),
        vision_config={
            **PATCH_VISION,
            "image_size": 64,
            "out_hidden_size": 128,
        },
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    return built(model_class, config, words), processor


PIXTRAL_VISION = {**vision_settings(64), "model_type": "pixtral", "head_dim": 16}


@cache
def mistral3() -> tuple[Any, Any]:
    """The rows of an image end with tokens of their own; merges patches."""
    words, processor, settings = _pixtral(merge=2)
    config = transformers.Mistral3Config(
        **settings,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return built(transformers.Mistral3ForConditionalGeneration, config, words), processor


@cache
def pixtral() -> tuple[Any, Any]:
    """LLaVA with the vision tower of Pixtral: the larger the image, the more image tokens."""
    words, processor, settings = _pixtral(merge=1)
    config = transformers.LlavaConfig(
        **settings,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return built(transformers.LlavaForConditionalGeneration, config, words), processor


def _pixtral(merge: int) -> tuple[transformers.PreTrainedTokenizerFast, Any, dict[str, Any]]:
    """Tokenizer, processor and settings of the configuration. The processor writes what Pixtral's own would, which
    needs torchvision."""
    words = chatml_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    patch = 8 * merge

    def expand(features: dict[str, Any], index: int) -> str:
        height, width = (int(side) // patch for side in features["image_sizes"][index])
        return "[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]"

    images = image_processor("pixtral", size={"longest_edge": 48}, patch_size=patch)
    settings = {
        "text_config": text_settings(model_type="mistral", vocab_size=len(words), sliding_window=None),
        "vision_config": PIXTRAL_VISION,
        "image_token_index": words.convert_tokens_to_ids("[IMG]"),
    }
    return words, MinimalProcessor(images, words, chatml("[IMG]"), "[IMG]", expand), settings


@cache
def internvl() -> tuple[Any, Any]:
    """Tiles, over Qwen2."""
    words = chatml_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = images_only(transformers.InternVLProcessor)(
        image_processor("got_ocr2", size=square(32), max_patches=4),
        words,
        image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>"),
    )
    config = transformers.InternVLConfig(
        text_config=text_settings(model_type="qwen2", vocab_size=len(words)),
        vision_config=plain_vision(32),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return built(transformers.InternVLForConditionalGeneration, config, words), processor


@cache
def idefics2() -> tuple[Any, Any]:
    """A resampler gives every image the same number of tokens."""
    words = chatml_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    images = image_processor("idefics2", size={"shortest_edge": 32, "longest_edge": 64}, do_image_splitting=False)
    config = transformers.Idefics2Config(
        text_config=text_settings(model_type="mistral", vocab_size=len(words), sliding_window=None),
        vision_config=plain_vision(64),
        perceiver_config={
            "hidden_size": 128,
            "resampler_n_latents": 16,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.Idefics2Processor(images, words, image_seq_len=16, chat_template=chatml("<image>"))
    model = built(transformers.Idefics2ForConditionalGeneration, config, words)
    torch.nn.init.normal_(model.model.connector.perceiver_resampler.latents)  # all alike as built
    return model, processor


@cache
def vipllava() -> tuple[Any, Any]:
    """LLaVA with the features of several vision layers."""
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    images = image_processor("clip", size={"shortest_edge": 32}, crop_size=square(32))
    config = transformers.VipLlavaConfig(
        text_config=text_settings(model_type="llama", vocab_size=len(words)),
        vision_config=vision_settings(32),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-1, -2],
    )
    return built(transformers.VipLlavaForConditionalGeneration, config, words), transformers.LlavaProcessor(
        images, words, **LLAVA_PROCESSING
    )


@cache
def deepseek_vl() -> tuple[Any, Any]:
    words = chatml_tokenizer(image_token="<image_placeholder>")
    images = image_processor("deepseek_vl", size=square(32))
    template = chatml("<image_placeholder>")
    config = transformers.DeepseekVLConfig(
        text_config=text_settings(model_type="llama", vocab_size=len(words)),
        vision_config=siglip_settings(32),
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = transformers.DeepseekVLProcessor(images, words, chat_template=template, num_image_tokens=16)
    return built(transformers.DeepseekVLForConditionalGeneration, config, words), processor


@cache
def janus() -> tuple[Any, Any]:
    """Also draws images: has an image tokenizer, which reading leaves alone."""
    words = chatml_tokenizer(
        image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>"
    )
    template = chatml("<image_placeholder>")
    config = transformers.JanusConfig(
        text_config=text_settings(model_type="llama", vocab_size=len(words)),
        vision_config={**plain_vision(32), "mlp_ratio": 2, "projection_dim": 128, "num_image_tokens": 16},
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "latent_channels": 32,
            "num_embeddings": 16,
            "image_token_embed_dim": 16,
            "projection_dim": 16,
        },
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
    )
    images = image_processor("janus", size=square(32))
    processor = transformers.JanusProcessor(images, words, chat_template=template, num_image_tokens=16)
    return built(transformers.JanusForConditionalGeneration, config, words), processor


@cache
def ovis2() -> tuple[Any, Any]:
    """Image tokens are mixtures of a table of embeddings, from which the tokens between tiles come too."""
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words = chatml_tokenizer("<image>", "<IMG_ATOM>", *marks)
    images = image_processor("ovis2", size=square(32), crop_to_patches=True, max_patches=2)
    config = transformers.Ovis2Config(
        text_config=text_settings(model_type="qwen2", vocab_size=len(words)),
        vision_config={**plain_vision(32), "vocab_size": 37},
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(marks),
        vocab_size=len(words),
        hidden_size=128,
        tie_word_embeddings=False,
    )
    processor = transformers.Ovis2Processor(images, words, chat_template=chatml("<image>"), image_seq_length=16)
    return built(transformers.Ovis2ForConditionalGeneration, config, words), processor


@cache
def aria() -> tuple[Any, Any]:
    """Learned queries make the image tokens; experts."""
    words = chatml_tokenizer(image_token="<|img|>")
    images = image_processor("aria", max_image_size=980, min_image_size=980)
    config = transformers.AriaConfig(
        text_config=text_settings(
            vocab_size=len(words), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, pad_token_id=0
        ),
        vision_config={**plain_vision(980), "model_type": "idefics3_vision", "patch_size": 140},
        projector_patch_to_query_dict={49: 16},
        image_token_index=words.image_token_id,
        initializer_range=0.14,
    )
    processor = transformers.AriaProcessor(images, words, chat_template=chatml("<|img|>"), size_conversion={980: 16})
    return built(transformers.AriaForConditionalGeneration, config, words), processor


@cache
def qwen3_vl_moe() -> tuple[Any, Any]:
    """Experts; visual features inside the decoder layers, as in Qwen3-VL."""
    return qwen(
        transformers.Qwen3VLMoeForConditionalGeneration,
        transformers.Qwen3VLMoeConfig,
        QWEN3_ROPE,
        QWEN3_VISION,
        **{"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
    )


@cache
def glm4v_moe() -> tuple[Any, Any]:
    """GLM-4V with experts."""
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    return _glm(transformers.Glm4vMoeForConditionalGeneration, transformers.Glm4vMoeConfig, **experts)


BUILDERS = (
    llava_onevision,
    qwen2_vl,
    idefics3,
    smolvlm,
    glm4v,
    mistral3,
    pixtral,
    internvl,
    idefics2,
    vipllava,
    deepseek_vl,
    janus,
    ovis2,
    aria,
    qwen3_vl_moe,
    glm4v_moe,
)
