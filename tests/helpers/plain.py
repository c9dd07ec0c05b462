"""The plain way: one masked forward of the whole model for each token. The truth that the sampler is held to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats

from mmbdhs.decoding.token_sampling import vision_token_ids
from mmbdhs.native import reference
from mmbdhs.vlm import VLM, end_token_ids

FALSE_ALARM = 1e-6  # of each statistical test


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PROMPTS = ["Describe the image.", "Is there a dog?", "What is it?", "Is it red?"]
REFERENCES = [
    "The image shows a red car. A dog sits next to it. There are two people.",
    "No, there is a cat on the table. Yes, the tree is green.",
    "A banana",
    "Yes.",
]
IMAGES = [picture(seed) for seed in range(4)]


CHAT_FAMILIES = ["llava", "llava_llama", "qwen2_5_vl"]
CHAT_TEXTS = [
    "The image shows a red car.",
    "  No, it is not!\n\nYes.  ",
    "Ein größerer Hund — 狗。猫很大！ 🐕 end",
    "a",
    "1. The cat\n2. The dog",
]


def prompt_inputs(processor: Any, images: list[Image.Image], prompt: str) -> dict[str, Any]:
    """What the chat template and the processor make of the prompt alone."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    return dict(inputs)


@torch.no_grad()
def masked_logits(model: Any, inputs: dict[str, Any], visible: tuple[int, ...], response: list[int]) -> torch.Tensor:
    """Logits [len(response) + 1, V] after the prompt and after each response token, by a masked forward of the whole
    model: a 2-D mask with zeros at hidden image tokens, and the positions that an unmasked forward would have."""
    inputs = dict(inputs)
    prompt = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    ids = torch.cat([prompt, torch.tensor([response], dtype=torch.int64)], dim=1)
    image = (ids[0] == VLM.of(model).image_token_id).nonzero().flatten()
    mask = torch.ones_like(ids)
    mask[0, image] = 0
    mask[0, image[list(visible)]] = 1
    for name in (name for name, value in inputs.items() if value.shape == prompt.shape):  # kinds of tokens: 0 for text
        kind = int(model.config.model_type == "paligemma")  # but here 0 is the prompt, and 1 the response
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(response)), value=kind)
    positions = torch.arange(ids.shape[1])[None]
    if "image_grid_thw" in inputs:
        arguments = {name: inputs[name] for name in ("image_grid_thw", "mm_token_type_ids")}
        positions, _ = model.model.get_rope_index(ids, **arguments)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, **inputs).logits
    return logits[0, prompt.shape[1] - 1 :]


def greedy_ids(
    model: Any, processor: Any, inputs: dict[str, Any], visible: tuple[int, ...], splice: Any, limit: int, alone: bool
) -> list[int]:
    """The completion of a sentence, token by token, with the plain sentence rule as the only stop.

    alone: whether it is the only sentence; if nothing of it is kept, it begins with text.
    """
    suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
    ends = end_token_ids(VLM.of(model), processor.tokenizer)
    ids: list[int] = []
    while True:
        logits = masked_logits(model, inputs, visible, [*splice.prefix_ids, *ids])[-1]
        logits[suppressed] = -torch.inf
        if alone and not ids and not splice.kept.strip():
            decode = processor.tokenizer.decode
            blank = [not decode([token], skip_special_tokens=True).strip() for token in range(len(logits))]
            logits[torch.tensor(blank)] = -torch.inf
        token = int(logits.argmax())
        final = token in ends or len(ids) + 1 == limit
        if token not in ends:
            ids.append(token)
        text = _text(processor, splice.prefix_ids, ids)
        end = _end(splice.kept + text, final)
        if end >= 0:
            added = len((splice.kept + text).encode()[:end].decode()) - len(splice.kept)
            return _shortest(processor, splice.prefix_ids, ids, added)


def assert_replays(model: Any, processor: Any, images: list[Image.Image], prompt: str, sample: Any, limit: int) -> None:
    """Each sentence of a greedy sample is what the plain way makes of its beginning."""
    inputs = prompt_inputs(processor, images, prompt)
    for splice in sample.sentences:
        alone = len(sample.sentences) == 1
        plain = greedy_ids(model, processor, inputs, sample.visible_image_tokens, splice, limit, alone)
        assert list(splice.completion_ids) == plain


def _shortest(processor: Any, prefix: tuple[int, ...], ids: list[int], length: int) -> list[int]:
    """As few of `ids` as hold the first `length` characters."""
    for count in range(len(ids) + 1):
        if len(_text(processor, prefix, ids[:count])) >= length:
            return ids[:count]
    raise AssertionError("the text is shorter than its sentence")


def _text(processor: Any, prefix: tuple[int, ...], ids: list[int]) -> str:
    decode = processor.tokenizer.decode
    return decode([*prefix, *ids], skip_special_tokens=True)[len(decode(list(prefix), skip_special_tokens=True)) :]


def _end(text: str, final: bool) -> int:
    raw = torch.tensor(list(text.encode()), dtype=torch.uint8)
    offsets = torch.tensor([0, len(raw)])
    return int(reference.sentence_ends(raw, offsets, torch.tensor([final])))


def chi_square(counts: Counter, logits: torch.Tensor) -> None:
    """Counted outcomes follow softmax(logits), up to a false alarm of 1e-6. Outcomes expected less than ten times count
    with the first of the others."""
    total, probabilities = sum(counts.values()), logits.double().softmax(0)
    common = (probabilities * total >= 10).nonzero().flatten().tolist()
    observed = np.array([counts[i] for i in common])
    expected = np.array([float(probabilities[i]) * total for i in common])
    observed[0] += total - observed.sum()
    expected[0] += total - expected.sum()
    assert all(probabilities[i] > 0 for i in counts)
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM
