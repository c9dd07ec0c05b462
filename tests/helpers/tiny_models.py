"""Tiny random vision-language models with real processors, built from configurations."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The image shows a red car next to a small dog. There are two people, e.g. a woman and a man.",
    "Yes, there is a cat on the table. No, the banana isn't green! What is in the picture? It costs 3.5 dollars.",
    "USER: ASSISTANT: describe the image in detail. A tree stands behind the house, and the sky is blue.",
]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAVA_PROCESSING = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": LLAVA_TEMPLATE,
}
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def image_processor(family: str, **settings: Any) -> Any:
    """The family's image processor that works on PIL images; the others need torchvision."""
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    name = f"{family}_image_processor_pil".replace("_", "")
    names = [key for key in vars(module) if key.replace("_", "").lower() == name]
    return getattr(module, min(names, key=len))(**settings)  # the longer name is an alias


def tokenizer(special: tuple[str, ...], eos: str) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of about 500 tokens, in which a word is one to three tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=list(special), initial_alphabet=sorted(alphabet), show_progress=False
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<pad>", extra_special_tokens=list(special)
    )


def llama_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """In the manner of LLaMA: "▁" for spaces, one in front of the text, bytes for unknown characters, a BOS."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    core.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    trained = json.loads(core.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )


def text_settings(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,  # of size 32, the least that the native attention takes
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.14,  # apart enough that the arg-max is no matter of rounding
        **more,
    }


def vision_settings(size: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
        "projection_dim": 32,
    }


@cache
def llava() -> tuple[Any, Any]:
    return _llava(tokenizer(("<pad>", "</s>", "<image>"), "</s>"))


@cache
def llava_llama() -> tuple[Any, Any]:
    """LLaVA with a tokenizer like LLaMA's and, like some chat templates, a BOS in the template too."""
    model, processor = _llava(llama_tokenizer())
    processor.chat_template = "<s>" + processor.chat_template
    return model, processor


def _llava(words: transformers.PreTrainedTokenizerFast) -> tuple[Any, Any]:
    processor = transformers.LlavaProcessor(
        image_processor("clip", size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        words,
        **LLAVA_PROCESSING,
    )
    config = transformers.LlavaConfig(
        vision_config=vision_settings(48),
        text_config=text_settings(model_type="llama", vocab_size=len(words) + 3),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return built(transformers.LlavaForConditionalGeneration, config, words), processor


@cache
def llava_next() -> tuple[Any, Any]:
    words = tokenizer(("<pad>", "</s>", "<image>"), "</s>")
    grid = [[24, 48], [48, 24], [48, 48]]
    processor = transformers.LlavaNextProcessor(
        image_processor(
            "llava_next", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=grid
        ),
        words,
        **LLAVA_PROCESSING,
    )
    config = transformers.LlavaNextConfig(
        vision_config=vision_settings(24),
        text_config=text_settings(model_type="llama", vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    return built(transformers.LlavaNextForConditionalGeneration, config, words), processor


class _ImagesOnly:
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


def images_only(processor_class: type) -> type:
    """The class without its video processor, which needs torchvision."""
    return type(processor_class.__name__, (_ImagesOnly, processor_class), {})


@cache
def qwen2_5_vl() -> tuple[Any, Any]:
    return qwen(
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLConfig,
        {"mrope_section": [4, 6, 6]},
        {"out_hidden_size": 128, "window_size": 32, "fullatt_block_indexes": [1]},
    )


PATCH_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
QWEN3_ROPE = {"mrope_section": [4, 6, 6], "mrope_interleaved": True}
QWEN3_VISION = {"out_hidden_size": 128, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}


@cache
def qwen3_vl() -> tuple[Any, Any]:
    """Adds visual features inside its decoder layers (deepstack)."""
    return qwen(transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig, QWEN3_ROPE, QWEN3_VISION)


def qwen(
    model_class: type, config_class: type, rope: dict[str, Any], vision: dict[str, Any], **text: Any
) -> tuple[Any, Any]:
    special = (
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
    )
    words = tokenizer(special, "<|im_end|>")
    processor = images_only(transformers.Qwen2_5_VLProcessor)(
        image_processor("qwen2_vl", patch_size=8, merge_size=2, min_pixels=256, max_pixels=4096),
        words,
        chat_template=QWEN_TEMPLATE,
    )
    config = config_class(
        text_config=text_settings(
            vocab_size=len(words), rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope}, **text
        ),
        vision_config={
            **PATCH_VISION,
            "spatial_merge_size": 2,
            **vision,
        },
        **{
            name: words.convert_tokens_to_ids(token)
            for name, token in {
                "image_token_id": "<|image_pad|>",
                "video_token_id": "<|video_pad|>",
                "vision_start_token_id": "<|vision_start|>",
                "vision_end_token_id": "<|vision_end|>",
            }.items()
        },
    )
    return built(model_class, config, words), processor


def built(model_class: type, config: Any, words: transformers.PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(0)
    model = model_class(config).eval().float()
    model.generation_config.eos_token_id = None
    # Random weights would hardly ever end a sentence: favour stops, and what follows them.
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    favoured = words(". ! The a 3.5 dog cat red etc. Yes\n", add_special_tokens=False)["input_ids"]
    head.bias[favoured] = 3.0
    return model
