"""In half precision leaving out and masking round differently: greedy tokens agree but for near ties.

`PYTHONPATH=tests python tests/vlm/test_precision.py` prints how often they do not, over all families.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.families import EXACT, IMAGES, LIMIT, PROMPTS, REFERENCES
from helpers.model_zoo import ZOO
from helpers.plain import masked_logits, prompt_inputs

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.decoding.token_sampling import vision_token_ids
from mmbdhs.vlm import VLM

FAMILIES = ["llava_mistral_sliding", "gemma3", "paligemma", "qwen2_vl", "idefics3", "internvl"]
DTYPES = [torch.bfloat16, torch.float16]


def choices(family: str, dtype: torch.dtype, seeds: int = 1) -> Iterator[tuple[float, float]]:
    """For each generated token how far its logit is below the best of a masked forward in the same dtype, and the
    noise of that forward: twice its largest distance from float32 on the same weights."""
    model, processor = ZOO[family]()
    half = copy.deepcopy(model).to(dtype)
    whole = copy.deepcopy(half).float()
    suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
    for seed in range(seeds):
        config = BDHSConfig(mask_threshold=0.8, temperature=0, max_sentence_tokens=LIMIT, max_iterations=1, seed=seed)
        samples = bdhs_sample(half, processor, IMAGES, PROMPTS, REFERENCES, config, lambda a, b: [0.0] * len(a))
        for sample, images, prompt in zip(samples, IMAGES, PROMPTS, strict=True):
            inputs = prompt_inputs(processor, images, prompt)
            rounded = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
            for splice in sample.sentences:
                ids, visible = [*splice.prefix_ids, *splice.completion_ids], sample.visible_image_tokens
                first = len(splice.prefix_ids)
                found, truth = (
                    masked_logits(*arguments, visible, ids).float()[first : len(ids)]
                    for arguments in ((half, rounded), (whole, inputs))
                )
                found[:, suppressed] = truth[:, suppressed] = -1e9
                noise = 2 * (found - truth).abs().amax(dim=1)
                below = found.amax(dim=1) - found.gather(1, torch.tensor([splice.completion_ids]).T)[:, 0]
                yield from zip(below.tolist(), noise.tolist(), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_near_ties_are_decided_otherwise(family: str, dtype: torch.dtype) -> None:
    tokens = list(choices(family, dtype))
    assert len(tokens) > 10 and all(below <= noise for below, noise in tokens)


def main() -> None:
    for dtype in DTYPES:
        tokens: list[Any] = [token for family in EXACT for token in choices(family, dtype, seeds=4)]
        otherwise = sum(below > 0 for below, _ in tokens)
        beyond = sum(below > noise for below, noise in tokens)
        print(
            f"{dtype}: {otherwise} of {len(tokens)} tokens chosen otherwise ({otherwise / len(tokens):.2%}), "
            f"{beyond} of them beyond the dtype's noise"
        )


if __name__ == "__main__":
    main()
