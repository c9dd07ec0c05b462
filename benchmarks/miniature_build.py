"""The untrained miniature: a real `LlavaForConditionalGeneration` and its processor, small enough to ship."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES
from mmbdhs.miniature.world import SIDE

PATCH = 8
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>"]
CONTEXT = 2048

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}
{%- elif message['role'] == 'system' -%}{{ '' }}
{%- else -%}{{ 'USER: ' }}
{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_WORDS = """
USER ASSISTANT Describe The Is What Where Yes No the image shows a an is in there no colour of this and it
top center bottom left right
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each word of the world is one token and any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [*_WORDS.split(), *COLOURS, *KINDS, *SCENES]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    spaced = [f" {word}" for word in words]
    tokenizer.train_from_iterator([*spaced, *(w for w in words if w[0].isupper())], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer, image processor (96×96 pixels, 144 patches) and chat template in one."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the CLS token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """A randomly initialised model that fits the processor."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # slow waves: likeness counts from afar
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    _prepare(model, SIDE // PATCH)
    return model


@torch.no_grad()
def _prepare(model: LlavaForConditionalGeneration, side: int) -> None:
    """A start from which the model soon learns to look. Where keys equal queries, a token attends to others like it
    from the first step: in the tower an image token to its neighbours, in the decoder's first layer a word to the
    image tokens near that word. There keys turn round the direction that all words share and image tokens lack, or a
    word would be most like itself. Outputs that transpose the values hand on what attention finds. Words begin far
    enough apart to be told from each other."""
    words = model.get_input_embeddings().weight
    torch.nn.init.normal_(words, std=0.1)
    shared = torch.nn.functional.normalize(torch.randn(words.shape[1]), dim=0)
    words += (0.8 - words @ shared)[:, None] * shared
    tower = model.model.vision_tower
    positions = tower.embeddings.position_embedding.weight
    positions[1:] = 0.2 * _grid_waves(side, positions.shape[1])
    for layer in tower.encoder.layers:
        layer.self_attn.q_proj.weight.mul_(2.0)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    for attention in attentions:
        torch.nn.init.normal_(attention.q_proj.weight, std=0.05)
        torch.nn.init.normal_(attention.k_proj.weight, std=0.05)
        torch.nn.init.orthogonal_(attention.v_proj.weight, gain=0.8)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    torch.nn.init.orthogonal_(attentions[0].q_proj.weight, gain=1.6)
    turned = torch.eye(len(shared)) - 1.5 * torch.outer(shared, shared)
    attentions[0].k_proj.weight.copy_(attentions[0].q_proj.weight @ turned)


def _grid_waves(side: int, width: int) -> Tensor:
    """Sinusoids of row and column, [side², width]."""
    frequencies = math.pi / side * torch.logspace(0, math.log10(side / 2), width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)
