"""BDHS sampling against masked generation written with plain `transformers`, on a LLaVA-1.6 shape.

2,928 image tokens (five 24×24 tiles and their row ends), five sentences, 99% of the image tokens hidden, greedy, random
weights. The vision tower has 1/23 of the language model's parameters, as in LLaVA-1.6-7B. Both baselines encode the
image once and keep a KV cache; every side's tokens are asserted equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import median_of, peak_memory, save, stages
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DynamicCache,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample, examples
from mmbdhs.branches import BranchPool
from mmbdhs.examples import ExampleReader
from mmbdhs.scheduling import Sampler
from mmbdhs.splicing import Reference
from mmbdhs.tokens import vision_token_ids

IMAGE_TOKENS = 2928
PROMPT = "Describe the image in detail."
REFERENCE = (
    "The image shows a busy street in the middle of a city on a bright day. A red bus stands at the crossing while "
    "several people walk past it. On the left there is a small shop with a green door and a large window. A woman in "
    "a blue coat holds a dog on a short leash next to the shop. The sky above the tall buildings is clear and blue."
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build(layers: int, hidden: int) -> tuple[Any, Any]:
    """A LLaVA-1.6 of the given decoder size with random weights, and its processor."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "</s>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([REFERENCE, PROMPT, "USER: ASSISTANT:"] * 2, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    grid = [[672, 672]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(images, words, 14, "default", TEMPLATE, num_additional_image_tokens=1)
    width = hidden // 4  # and three quarters of the layers: CLIP-L beside a 7B decoder
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 3 * layers // 4,
        "num_attention_heads": width // 32,
        "image_size": 336,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(words),
        "hidden_size": hidden,
        "intermediate_size": 11 * hidden // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 4096,
    }
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    torch.manual_seed(0)
    return LlavaNextForConditionalGeneration(config).eval(), processor


class MaskedGeneration:
    """Both baselines: the sentences of one pair as a batch, the hidden image tokens masked at full length."""

    def __init__(self, model: Any, processor: Any, image: Image.Image, sample: BDHSSample, steps: int) -> None:
        self.model, self.processor, self.image, self.steps = model, processor, image, steps
        self.prefixes = [list(splice.prefix_ids) for splice in sample.sentences]
        self.visible = list(sample.visible_image_tokens)
        self.suppressed = vision_token_ids(model, processor.tokenizer)

    def prompt(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings [1, P, hidden] with the image encoded once, and the prompt's mask [P]."""
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[text], images=[self.image], return_tensors="pt")
        ids = inputs["input_ids"]
        inner = self.model.model
        features = inner.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        embeds = inner.get_input_embeddings()(ids)
        image = ids == self.model.config.image_token_id
        embeds = embeds.masked_scatter(image[..., None], torch.cat(list(features)).to(embeds.dtype))
        mask = torch.ones(ids.shape[1], dtype=torch.int64)
        positions = image[0].nonzero().flatten()
        mask[positions] = 0
        mask[positions[self.visible]] = 1
        return embeds, mask

    def batched(self) -> list[list[int]]:
        """(a) One batched masked generation over the sentence prefixes: left-padded rows of prompt + prefix."""
        embeds, mask = self.prompt()
        embed = self.model.get_input_embeddings()
        longest = max(map(len, self.prefixes))
        rows, masks, lengths = [], [], []
        for prefix in self.prefixes:
            padding = longest - len(prefix)
            own = embed(torch.tensor([prefix], dtype=torch.int64))
            rows.append(torch.cat([embeds.new_zeros(1, padding, embeds.shape[2]), embeds, own], dim=1))
            masks.append(torch.cat([mask.new_zeros(padding), mask, mask.new_ones(len(prefix))]))
            lengths.append(len(mask) + len(prefix))
        total = rows[0].shape[1]
        offsets = torch.tensor([total - length for length in lengths])
        positions = (torch.arange(total)[None] - offsets[:, None]).clamp(min=0)
        cache = DynamicCache()
        hidden = self.decode(torch.cat(rows), torch.stack(masks), positions, cache)
        return self.generate(hidden, torch.stack(masks), torch.tensor(lengths), cache)

    def shared(self) -> list[list[int]]:
        """(b) The same, with the longest prefix prefilled once at full length and its cache repeated for each row."""
        embeds, mask = self.prompt()
        longest = max(self.prefixes, key=len)
        row = torch.cat([embeds, self.model.get_input_embeddings()(torch.tensor([longest]))], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(longest))])
        cache = DynamicCache()
        hidden = self.model.model.language_model(
            inputs_embeds=row,
            attention_mask=mask[None],
            position_ids=torch.arange(len(mask))[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        lengths = torch.tensor([len(mask) - len(longest) + len(prefix) for prefix in self.prefixes])
        cache.batch_repeat_interleave(len(self.prefixes))
        masks = mask.repeat(len(lengths), 1)
        masks[torch.arange(len(mask))[None] >= lengths[:, None]] = 0
        return self.generate(hidden[lengths - 1], masks, lengths, cache)

    def decode(self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        output = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state[:, -1]

    def generate(self, hidden: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor, cache: Any) -> list[list[int]]:
        tokens: list[torch.Tensor] = []
        embed = self.model.get_input_embeddings()
        while True:
            logits = self.model.lm_head(hidden)
            logits[:, self.suppressed] = -torch.inf
            tokens.append(logits.argmax(dim=-1))
            if len(tokens) == self.steps:
                return torch.stack(tokens, dim=1).tolist()
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = (lengths + len(tokens) - 1)[:, None]
            hidden = self.decode(embed(tokens[-1])[:, None], mask, positions, cache)


@torch.no_grad()
def main(quick: bool = False) -> None:
    model, processor = build(layers=4, hidden=192) if quick else build(layers=8, hidden=512)
    steps, pairs, runs = (8, 2, 1) if quick else (16, 4, 3)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)) for _ in range(pairs)]
    config = BDHSConfig(max_iterations=1, temperature=0, max_sentence_tokens=steps)

    def ours() -> list[BDHSSample]:
        return bdhs_sample(
            model, processor, images, [PROMPT] * pairs, [REFERENCE] * pairs, config, lambda a, b: [0.0] * len(a)
        )

    samples = ours()
    baseline = MaskedGeneration(model, processor, images[0], samples[0], steps)
    for side in (baseline.batched, baseline.shared):
        assert_equal(samples[0], side(), steps)
    memory = [peak_memory(side) for side in (ours, baseline.shared, baseline.batched)]
    seconds, batched, shared = median_of(runs, ours, baseline.batched, baseline.shared)
    own = seconds / pairs
    row = {
        "shape": f"LLaVA-1.6, {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, float32",
        "image_tokens": IMAGE_TOKENS,
        "sentences": len(samples[0].sentences),
        "steps": steps,
        "ours_s_per_pair": round(own, 4),
        "batched_s_per_pair": round(batched, 3),
        "shared_s_per_pair": round(shared, 3),
        "over_batched": round(batched / own, 1),
        "over_shared": round(shared / own, 1),
        "stages_ms_per_pair": stage_times(ours, pairs),
        "peak_mib": dict(zip(("ours", "shared", "batched"), map(round, memory), strict=True)),
    }
    print(f"BDHS sampling, {row['shape']}, {IMAGE_TOKENS} image tokens, {row['sentences']} sentences, {steps} steps")
    print(f"  ours                          {own * 1e3:9.1f} ms/pair  {row['peak_mib']['ours']:6d} MiB")
    print(
        f"  (a) batched masked generation {batched * 1e3:9.1f} ms/pair  {row['peak_mib']['batched']:6d} MiB  "
        f"{row['over_batched']:5.1f}×"
    )
    print(
        f"  (b) shared masked prefix      {shared * 1e3:9.1f} ms/pair  {row['peak_mib']['shared']:6d} MiB  "
        f"{row['over_shared']:5.1f}×"
    )
    print("  stages, ms/pair: " + ", ".join(f"{name} {ms}" for name, ms in row["stages_ms_per_pair"].items()))
    save("sampling", row, keep=not quick)


def stage_times(sample: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Milliseconds for a pair in each stage of the road."""
    with stages(
        read=(ExampleReader, "read"),
        split=(Reference, "__init__"),
        processor=(examples, "encode"),
        vision=(examples, "decoder_inputs"),
        prefill=(BranchPool, "add"),
        decode=(BranchPool, "step"),
        schedule=(Sampler, "_advance"),
    ) as spent:
        sample()
    return {stage: round(1e3 * seconds / pairs, 1) for stage, seconds in spent.items()}


def assert_equal(sample: BDHSSample, completions: list[list[int]], steps: int) -> None:
    for splice, ids in zip(sample.sentences, completions, strict=True):
        assert splice.completion_ids == tuple(ids[: len(splice.completion_ids)]), "the sides chose different tokens"
        assert len(splice.completion_ids) == steps, "a completion ended early: the work would not compare"
