"""Tiny models without a vision tower: patches of pixels, or the codes of an image tokenizer, are embedded."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from helpers.tiny_models import LLAVA_TEMPLATE, built, image_processor, text_settings, tokenizer
from helpers.zoo_parts import MinimalProcessor, square


@cache
def fuyu() -> tuple[Any, Any]:
    """Patches of pixels go through one linear layer; Persimmon, with rotation of half of each head."""
    words = tokenizer(("<pad>", "</s>", "|SPEAKER|", "|NEWLINE|"), "</s>")

    def patches(images: list[Any], return_tensors: str) -> dict[str, Any]:
        pixels = torch.stack([pil_to_tensor(image.resize((40, 32))) for image in images])
        return {"pixel_values": torch.nn.functional.unfold(pixels, 8, stride=8).mT.flatten(0, 1)[None]}

    processor = MinimalProcessor(
        patches,
        words,
        LLAVA_TEMPLATE.replace("<image>\n", "|SPEAKER|"),
        "|SPEAKER|",
        lambda features, index: ("|SPEAKER|" * 5 + "|NEWLINE|") * 4,
    )
    config = transformers.FuyuConfig(
        text_config=text_settings(model_type="persimmon", vocab_size=len(words), pad_token_id=0),
        patch_size=8,
        image_token_id=words.convert_tokens_to_ids("|SPEAKER|"),
        initializer_range=0.14,
    )
    return built(transformers.FuyuForCausalLM, config, words), processor


def pil_to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


@cache
def chameleon() -> tuple[Any, Any]:
    """The codes of an image have tokens in the vocabulary, which the head gives the least of all logits; the decoder
    is the model itself. Writes what its own processor would, which ends every text with a separator."""
    codes = [f"IMGIMG{letter}Z" for letter in "ABCDEFGH"]
    words = tokenizer(("<pad>", "</s>", "<image>", "<racm3:break>", "<eoss>", *codes), "</s>")
    processor = MinimalProcessor(
        image_processor("chameleon", size={"shortest_edge": 32}, crop_size=square(32)),
        words,
        LLAVA_TEMPLATE,
        "<image>",
        lambda features, index: "<racm3:break>" + "<image>" * 16 + "<eoss>",
    )
    config = transformers.ChameleonConfig(
        **text_settings(vocab_size=len(words)),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 8,
            "latent_channels": 32,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={token: words.convert_tokens_to_ids(token) for token in ("<image>", *codes)},
    )
    return built(transformers.ChameleonForConditionalGeneration, config, words), processor


@cache
def emu3() -> tuple[Any, Any]:
    """Image tokens are the codes of an image tokenizer, and of the end of every row of them. Its own image processor
    needs torchvision."""
    codes = [f"<|visual token {code:06d}|>" for code in range(8)]
    words = tokenizer(("<pad>", "</s>", "<image>", "<|extra_200|>", *codes), "</s>")

    def pixels(images: list[Any], return_tensors: str) -> dict[str, Any]:
        values = torch.stack([pil_to_tensor(image.resize((32, 32))) for image in images])
        return {"pixel_values": values, "image_sizes": torch.full((len(images), 2), 32)}

    processor = MinimalProcessor(pixels, words, LLAVA_TEMPLATE, "<image>", lambda features, index: "<image>" * 20)
    config = transformers.Emu3Config(
        text_config=text_settings(vocab_size=len(words), pad_token_id=0),
        vq_config={
            "codebook_size": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
        },
        vocabulary_map={token: words.convert_tokens_to_ids(token) for token in ("<image>", "<|extra_200|>", *codes)},
    )
    return built(transformers.Emu3ForConditionalGeneration, config, words), processor


BUILDERS = (fuyu, chameleon, emu3)
