"""The LLaVA-1.6-7B shape: real dimensions, random bfloat16 weights, on a CPU a vocabulary of 32,000 tokens.

On a GPU: pairs a second in a call of 4 pairs and in one of 200, with what the first call of a model took, the time of
each stage, and how busy nvidia-smi says the GPU was.

On a CPU: seconds for a pair by stage, the most memory that the process held, and every token of one sentence against
one forward of the whole masked sequence with plain `transformers`. That forward is timed. The time of batched masked
generation is arithmetic: one such forward for each sentence, with the image encoded once, and later steps that take as
long as ours.
They would read the same weights, and 2,928 more keys and values of each layer and sentence.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import llava
import numpy as np
import torch
from measure import gpu_busy, stages
from PIL import Image
from table import Options, Table
from torch import Tensor

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample
from mmbdhs.decoding import BranchPool, vision_token_ids
from mmbdhs.miniature.demo import minilm
from mmbdhs.sampling import ExampleReader, Reference, examples
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.vlm import VLM

PROMPT = "Describe the image in detail."
REFERENCE = "The image shows a busy street. A red bus stands at the crossing. The sky is clear."
PAIRS, STEPS = 2, 8
COLUMNS = {
    **{"shape": "<45", "image_tokens": ">5d", "pairs": ">2d", "sentences": ">2d", "steps": ">2d", "threads": ">1"},
    **{"ours_s": ">6.1f", "masked_forward_s": ">6.1f", "batched_s": ">6.1f", "over_batched": ">5.1f"},
    **{"equal": ">5.0%", "peak_gib": ">5.1f"},
}
GPU_COLUMNS = {
    "shape": "<45",
    "pairs": ">3d",
    "first_s": ">6.1f",
    "pairs_per_s": ">6.2f",
    "busy": ">4.0%",
    "gib": ">5.1f",
}
STAGES = {
    "read": (ExampleReader, "read"),
    "split": (Reference, "__init__"),
    "processor": (examples, "encode_turn"),
    "vision": (ExampleReader, "encode"),
    "once": (examples, "check_decoding"),
    "prefill": (BranchPool, "add"),
    "decode": (BranchPool, "step"),
    "similarity": (Sampler, "_score"),
    "schedule": (Sampler, "_advance"),
}


@torch.no_grad()
def main(options: Options) -> None:
    (on_gpu if options.device.type == "cuda" else on_cpu)(options)


def on_gpu(options: Options) -> None:
    processor = llava.processor([REFERENCE, PROMPT, "USER: ASSISTANT:"] * 2)
    words = processor.tokenizer
    size = llava.Size(layers=2, hidden=128, dtype=torch.bfloat16) if options.quick else llava.SEVEN_BILLION
    model = llava.model(size, 32_064, words.convert_tokens_to_ids("<image>"), options.device)
    llava.never_ending(model, words)
    begin = time.perf_counter()
    sample_many(model, processor, 4)
    first = time.perf_counter() - begin
    with Table("sampling", GPU_COLUMNS, options) as table:
        for pairs in (4, 8 if options.quick else 200):
            with gpu_busy() as busy:
                begin = time.perf_counter()
                sample_many(model, processor, pairs)
                seconds = time.perf_counter() - begin
            with stages(**STAGES) as spent:  # in a call of its own: the clock of a stage waits for the device
                sample_many(model, processor, pairs)
            row = {"shape": llava.name(model), "pairs": pairs, "first_s": first, "pairs_per_s": pairs / seconds}
            row |= {"busy": busy[0] if busy else None, "gib": torch.cuda.max_memory_allocated() / 2**30}
            table.add(**row, stages_ms_per_pair={name: round(1e3 * s / pairs, 2) for name, s in spent.items()})


def sample_many(model: Any, processor: Any, pairs: int) -> list[BDHSSample]:
    """Sentences of 11 tokens, as long as those of captions."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)) for _ in range(4)]
    columns = (images * pairs)[:pairs], [PROMPT] * pairs, [REFERENCE] * pairs
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=11)
    return bdhs_sample(model, processor, *columns, config, lambda first, second: [0.0] * len(first))


@torch.no_grad()
def on_cpu(options: Options) -> None:
    size = llava.Size(layers=2, hidden=128, dtype=torch.bfloat16) if options.quick else llava.SEVEN_BILLION
    print("\nseconds for a pair of the LLaVA-1.6-7B shape on the CPU, once for each side")
    with Table("sampling", COLUMNS, options) as table:
        processor = llava.processor_of_32_000_tokens()
        words = processor.tokenizer
        model = llava.quick_model(size, 32_064, words.convert_tokens_to_ids("<image>"))
        llava.never_ending(model, words)
        row = measure(model, processor)
        table.add(**row)
        print("  stages, s/pair: " + ", ".join(f"{k} {v}" for k, v in row["stages_s_per_pair"].items()))
        print(
            f"  once for the model: {row['once_s']} s; peak with the masked forward: {row['peak_masked_gib']:.1f} GiB"
        )


def measure(model: Any, processor: Any) -> dict[str, Any]:
    """One row."""
    VLM.of(model).batches_vision = False  # the comparison, once for every model, would take as long as the images
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)) for _ in range(PAIRS)]
    samples, spent = sampled(model, processor, images)
    once = spent.pop("once")
    peak = peak_gib()
    begin = time.perf_counter()
    equal, gap = compared(model, processor, images[0], samples[0])
    forward = time.perf_counter() - begin
    own, sentences = sum(spent.values()) / PAIRS, len(samples[0].sentences)
    vision = spent["vision"] / PAIRS
    batched = vision + sentences * (forward - vision) + spent["decode"]
    return {
        "shape": llava.name(model),
        **{"image_tokens": llava.IMAGE_TOKENS, "pairs": PAIRS, "sentences": sentences, "steps": STEPS},
        **{"ours_s": own, "masked_forward_s": forward, "batched_s": batched, "over_batched": batched / own},
        **{"equal": equal, "largest_gap": gap, "peak_gib": peak, "peak_masked_gib": peak_gib()},
        **{"once_s": round(once, 1), "stages_s_per_pair": {k: round(v / PAIRS, 2) for k, v in spent.items()}},
    }


def sampled(model: Any, processor: Any, images: list[Image.Image]) -> tuple[list[BDHSSample], dict[str, float]]:
    """The samples, and the seconds of each stage; `once` is what the first examples of a model pay for its checks."""
    config = BDHSConfig(max_iterations=1, temperature=0, max_sentence_tokens=STEPS)
    texts, similarity = ([PROMPT] * PAIRS, [REFERENCE] * PAIRS), minilm()
    with stages(**STAGES) as spent:
        found = bdhs_sample(model, processor, images, *texts, config, similarity)
    return found, spent


def compared(model: Any, processor: Any, image: Image.Image, sample: BDHSSample) -> tuple[float, float]:
    """The share of a sentence's tokens that a masked forward predicts too, and by how much of the logits' spread the
    others are below its own choice."""
    splice = sample.sentences[-1]
    own = torch.tensor(splice.completion_ids)
    assert len(own) == STEPS, "a completion ended early"
    logits = masked_logits(model, processor, image, sample, [*splice.prefix_ids, *splice.completion_ids[:-1]])
    logits[:, vision_token_ids(VLM.of(model), processor.tokenizer)] = -torch.inf
    best, choice = logits.max(dim=-1)
    gaps = (best - logits.gather(1, own[:, None])[:, 0]) / logits[logits.isfinite()].std()
    assert float(gaps.max()) < 0.1, f"a token is {float(gaps.max()):.2g} of the logits' spread below the best"
    return float((choice == own).float().mean()), float(gaps.max())


def masked_logits(model: Any, processor: Any, image: Image.Image, sample: BDHSSample, response: list[int]) -> Tensor:
    """Float32 logits [STEPS, V] before each of the last tokens, by one forward over all 2,928 image tokens."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device, model.dtype)
    ids = torch.cat([inputs.pop("input_ids"), torch.tensor([response])], dim=1)
    positions = (ids[0] == model.config.image_token_id).nonzero().flatten()
    mask = torch.ones_like(ids)
    mask[0, positions] = 0
    mask[0, positions[list(sample.visible_image_tokens)]] = 1
    inputs["attention_mask"] = mask
    place = torch.arange(ids.shape[1])[None]
    output = model(input_ids=ids, position_ids=place, logits_to_keep=STEPS, use_cache=False, **inputs)
    return output.logits[0].float()


def peak_gib() -> float:
    """The most memory that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
