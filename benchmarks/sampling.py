"""BDHS sampling against masked generation written with plain `transformers`, on a LLaVA-1.6 shape.

2,928 image tokens, five sentences, 99% of the image tokens hidden, greedy, random weights. The vision tower has 1/23 of
the language model's parameters, as in LLaVA-1.6-7B. Both baselines encode the image once and keep a KV cache; every
side's tokens are asserted equal in float32. On a GPU the 7B shape follows in bfloat16, where rounding may break a tie:
the share of equal tokens is recorded. A first row shows what reading ahead hides of an image processor (read_ahead.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llava
import numpy as np
import read_ahead
import torch
import true_size
from llava import IMAGE_TOKENS, SEVEN_BILLION, Size
from measure import median_of, peak_memory, stages, thread_counts
from PIL import Image
from table import Options, Table
from transformers import DynamicCache

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample
from mmbdhs.decoding import BranchPool, vision_token_ids
from mmbdhs.sampling import ExampleReader, Reference, examples
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.vlm import VLM

PROMPT = "Describe the image in detail."
REFERENCE = (
    "The image shows a busy street in the middle of a city on a bright day. A red bus stands at the crossing while "
    "several people walk past it. On the left there is a small shop with a green door and a large window. A woman in "
    "a blue coat holds a dog on a short leash next to the shop. The sky above the tall buildings is clear and blue."
)
COLUMNS = {
    **{"shape": "<45", "steps": ">2d", "pairs": ">2d", "threads": ">1"},
    **{name: ">8.1f" for name in ("ours", "shared", "batched")},
    **{"over_shared": ">5.1f", "over_batched": ">5.1f", "equal": ">5.0%"},
    **{"in_between": ">6.1f", "alone": ">6.1f", "of_alone": ">5.0%"},
}


@torch.no_grad()
def main(options: Options) -> None:
    if options.shape:
        true_size.main(options)
        return
    print("\nms for a pair; batched: one masked generation over the sentence prefixes; shared: prefix prefilled once")
    sizes = [Size(layers=2, hidden=128)] if options.quick else [Size(layers=8, hidden=512)]
    if options.device.type == "cuda" and not options.quick:
        sizes.append(SEVEN_BILLION)
    with Table("sampling", COLUMNS, options) as table:
        torch.set_num_threads(1)
        table.add(**read_ahead.measure(options))
        for size in sizes:
            processor = llava.processor([REFERENCE, PROMPT, "USER: ASSISTANT:"] * 2)
            words = processor.tokenizer
            model = llava.model(size, len(words), words.convert_tokens_to_ids("<image>"), options.device)
            llava.never_ending(model, words)
            for threads in thread_counts(options.device)[: 1 if options.quick else None]:
                torch.set_num_threads(threads)
                row = measure(model, processor, options)
                table.add(**row)
                print("  stages, ms/pair: " + ", ".join(f"{k} {v}" for k, v in row["stages_ms_per_pair"].items()))
                print(f"  probe, once: {row['probe_ms']} ms, {row['probe_of_32_pairs']:.1%} of sampling 32 pairs")
                print("  peak MiB: " + ", ".join(f"{k} {v}" for k, v in row["peak_mib"].items()))


def measure(model: Any, processor: Any, options: Options) -> dict[str, Any]:
    """One row."""
    steps, pairs, runs = (4, 1, 1) if options.quick else (16, 4, 3)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)) for _ in range(pairs)]
    config = BDHSConfig(max_iterations=1, temperature=0, max_sentence_tokens=steps)

    def ours() -> list[BDHSSample]:
        return bdhs_sample(
            model, processor, images, [PROMPT] * pairs, [REFERENCE] * pairs, config, lambda a, b: [0.0] * len(a)
        )

    VLM.of(model).forget_checks()
    with stages(probe=(examples, "check_decoding")) as once:
        samples = ours()
    baseline = MaskedGeneration(model, processor, images[0], samples[0], steps)
    equal = min(equal_share(samples[0], side(), steps) for side in (baseline.batched, baseline.shared))
    assert equal == 1 or model.dtype != torch.float32, f"only {equal:.1%} of the tokens agree"
    memory = [peak_memory(side, options.device) for side in (ours, baseline.shared, baseline.batched)]
    seconds, batched, shared = median_of(runs, ours, baseline.batched, baseline.shared)
    own = seconds / pairs
    return {
        "shape": llava.name(model),
        **{"image_tokens": IMAGE_TOKENS, "sentences": len(samples[0].sentences), "steps": steps, "pairs": pairs},
        **{"ours": 1e3 * own, "batched": 1e3 * batched, "shared": 1e3 * shared, "equal": equal},
        **{"over_batched": batched / own, "over_shared": shared / own},
        **{"probe_ms": round(1e3 * once["probe"], 1), "probe_of_32_pairs": once["probe"] / (32 * own)},
        "stages_ms_per_pair": stage_times(ours, pairs),
        "peak_mib": dict(zip(("ours", "shared", "batched"), map(round, memory), strict=True)),
    }


def stage_times(sample: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Milliseconds for a pair in each stage of the road."""
    with stages(
        read=(ExampleReader, "read"),
        split=(Reference, "__init__"),
        processor=(examples, "encode_turn"),
        vision=(ExampleReader, "encode"),
        prefill=(BranchPool, "add"),
        decode=(BranchPool, "step"),
        schedule=(Sampler, "_advance"),
    ) as spent:
        sample()
    return {stage: round(1e3 * seconds / pairs, 1) for stage, seconds in spent.items()}


def equal_share(sample: BDHSSample, completions: list[list[int]], steps: int) -> float:
    """The share of equal tokens, each side's own choices."""
    equal = 0
    for splice, ids in zip(sample.sentences, completions, strict=True):
        assert len(splice.completion_ids) == steps, "a completion ended early: the work would not compare"
        equal += sum(a == b for a, b in zip(splice.completion_ids, ids, strict=True))
    return equal / (steps * len(sample.sentences))


class MaskedGeneration:
    """Both baselines: the sentences of one pair as a batch, the hidden image tokens masked at full length."""

    def __init__(self, model: Any, processor: Any, image: Image.Image, sample: BDHSSample, steps: int) -> None:
        self.model, self.processor, self.image, self.steps = model, processor, image, steps
        self.prefixes = [list(splice.prefix_ids) for splice in sample.sentences]
        self.visible = list(sample.visible_image_tokens)
        self.suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
        self.device = model.device

    def prompt(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings [1, P, hidden] with the image encoded once, and the prompt's mask [P]."""
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[text], images=[self.image], return_tensors="pt").to(self.device, self.model.dtype)
        ids = inputs["input_ids"]
        inner = self.model.model
        features = inner.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        embeds = inner.get_input_embeddings()(ids)
        image = ids == self.model.config.image_token_id
        embeds = embeds.masked_scatter(image[..., None], torch.cat(list(features)).to(embeds.dtype))
        mask = torch.ones(ids.shape[1], dtype=torch.int64, device=self.device)
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
            own = embed(torch.tensor([prefix], dtype=torch.int64, device=self.device))
            rows.append(torch.cat([embeds.new_zeros(1, padding, embeds.shape[2]), embeds, own], dim=1))
            masks.append(torch.cat([mask.new_zeros(padding), mask, mask.new_ones(len(prefix))]))
            lengths.append(len(mask) + len(prefix))
        total = rows[0].shape[1]
        ends = torch.tensor(lengths, device=self.device)
        positions = (torch.arange(total, device=self.device) - (total - ends)[:, None]).clamp(min=0)
        cache = DynamicCache()
        hidden = self.decode(torch.cat(rows), torch.stack(masks), positions, cache)
        return self.generate(hidden, torch.stack(masks), ends, cache)

    def shared(self) -> list[list[int]]:
        """(b) The same, with the longest prefix prefilled once at full length and its cache repeated for each row."""
        embeds, mask = self.prompt()
        longest = max(self.prefixes, key=len)
        row = torch.cat([embeds, self.model.get_input_embeddings()(torch.tensor([longest], device=self.device))], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(longest))])
        cache = DynamicCache()
        hidden = self.model.model.language_model(
            inputs_embeds=row,
            attention_mask=mask[None],
            position_ids=torch.arange(len(mask), device=self.device)[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        prefix_lengths = [len(mask) - len(longest) + len(prefix) for prefix in self.prefixes]
        lengths = torch.tensor(prefix_lengths, device=self.device)
        cache.batch_repeat_interleave(len(self.prefixes))
        masks = mask.repeat(len(lengths), 1)
        masks[torch.arange(len(mask), device=self.device) >= lengths[:, None]] = 0
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
