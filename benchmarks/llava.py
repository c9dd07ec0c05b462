"""LLaVA-1.6 with random weights, of any size, and a processor with a vocabulary of its own or Mistral's."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

IMAGE_TOKENS = 2928  # of a square image: five tiles of 24×24, and their row ends
_GRID = [[672, 672]]
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The size of the text decoder; the vision tower shrinks in the same proportion from CLIP-L.

    intermediate: of the decoder; 0 for 11/4 of `hidden`.
    kv_heads: of the decoder; 0 for as many as query heads.
    """

    layers: int
    hidden: int
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    intermediate: int = 0
    kv_heads: int = 0
    vision_head_dim: int = 32


SEVEN_BILLION = Size(32, 4096, head_dim=128, dtype=torch.bfloat16, intermediate=11008, vision_head_dim=64)


def processor(texts: list[str]) -> Any:
    """A processor whose byte-level vocabulary of 900 tokens is trained on `texts`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "</s>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    return _processor(words)


def processor_of_32_000_tokens() -> Any:
    """A processor with the SentencePiece vocabulary of Mistral-7B, which the package mistral-common carries."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("--shape 7b needs the extra 'bench': pip install 'mmbdhs[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(spec.submodule_search_locations[0]) / "data"
        shutil.copy(data / "tokenizer.model.v1", Path(folder) / "tokenizer.model")
        words = LlamaTokenizer.from_pretrained(folder)
    words.add_tokens(["<image>", "<pad>"], special_tokens=True)
    words.pad_token = "<pad>"
    return _processor(words)


def _processor(words: Any) -> Any:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=_GRID
    )
    return LlavaNextProcessor(images, words, 14, "default", _TEMPLATE, num_additional_image_tokens=1)


def model(size: Size, vocabulary: int, image_token: int, device: torch.device) -> Any:
    """The model, in evaluation mode, its weights drawn on the device."""
    width = size.hidden // 4  # and three quarters of the layers: the proportion of CLIP-L to a 7B decoder
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": max(3 * size.layers // 4, 2),
        "num_attention_heads": width // size.vision_head_dim,
        "image_size": 336,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate or 11 * size.hidden // 4,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // size.head_dim,
        "num_key_value_heads": size.kv_heads or size.hidden // size.head_dim,
        "max_position_embeddings": 4096,
    }
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, image_grid_pinpoints=_GRID
    )
    torch.manual_seed(0)
    with device:
        return LlavaNextForConditionalGeneration._from_config(config, dtype=size.dtype).eval()


@torch.no_grad()
def quick_model(size: Size, vocabulary: int, image_token: int) -> Any:
    """`model` on the CPU, without minutes of drawing: every matrix is a part of one long row of random numbers."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        built = model(size, vocabulary, image_token, torch.device("cpu"))
    drawn = torch.randn(16_777_259).mul_(0.02).to(size.dtype)  # a prime, so that no two rows of a matrix are equal
    for name, parameter in built.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_("norm" in name and name.endswith("weight"))
            continue
        for part in parameter.view(-1).split(len(drawn)):
            part.copy_(drawn[: len(part)])
        drawn = drawn.roll(4_099)
    return built


@torch.no_grad()
def never_ending(built: Any, tokenizer: Any) -> None:
    """Zero the output weights of what could end a sentence: of many random logits the highest is above 0."""
    ends = [i for i in range(len(tokenizer)) if not set(".!?\n").isdisjoint(tokenizer.decode([i]))]
    built.get_output_embeddings().weight[[*ends, tokenizer.eos_token_id]] = 0


def name(built: Any) -> str:
    """What a row says of the model."""
    return f"LLaVA-1.6, {sum(p.numel() for p in built.parameters()) / 1e6:.0f}M parameters, {built.dtype}"
