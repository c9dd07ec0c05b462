"""Every family of decoders: exact against a plain masked forward of the whole model, or refused for a reason.

`python tests/test_families.py` writes README's table from the lists that these tests run over.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_zoo import ZOO
from plain import greedy_ids, masked_logits, picture, prompt_inputs

from mmbdhs import BDHSConfig, UnsupportedModelError, bdhs_sample
from mmbdhs.examples import ExampleReader
from mmbdhs.model_forward import OutputHead
from mmbdhs.prompt_attention import run_decoder

REFUSED = {
    "mllama": "its decoder MllamaTextModel received .*cross_attention_states",
    "lfm2_vl": r"\['conv'\] in Lfm2Model",
    "qwen3_5": r"\['linear_attention'\] in Qwen3_5TextModel",
    "kimi_k25": "attend to the keys and values that were handed to the cache, as they are",
    "blip2": "must run on text alone",
    "chameleon": "its decoder ChameleonModel received .*pixel_values",
    "florence2": "an encoder-decoder",
    "llama4_temperature": "leaving image tokens out against masking them: by 0.00",
}
EXACT = [name for name in ZOO if name not in REFUSED]
PROMPTS = ["Describe the image.", "Is there a cat?"]
REFERENCES = [
    "The image shows a red car, e.g. a van. A dog sits next to it. It costs 3.5 dollars!",
    "No, there is a cat on the table. The tree is green.",
]
IMAGES = [[picture(0)], [picture(3), picture(4, 33, 90)]]  # two of unlike sizes for the second
LIMIT = 6


def sample(model: Any, processor: Any, **settings: Any) -> list:
    config = BDHSConfig(temperature=0, max_sentence_tokens=LIMIT, max_new_tokens=LIMIT, max_iterations=1, **settings)
    return bdhs_sample(model, processor, IMAGES, PROMPTS, REFERENCES, config, lambda a, b: [0.0] * len(a))


@pytest.mark.parametrize("threshold", [0.5, 0.95])
@pytest.mark.parametrize("family", EXACT)
def test_greedy_completions_replay(family: str, threshold: float) -> None:
    model, processor = ZOO[family]()
    samples = sample(model, processor, mask_threshold=threshold, seed=3)
    for found, images, prompt in zip(samples, IMAGES, PROMPTS, strict=True):
        inputs, before = prompt_inputs(processor, images, prompt), ""
        for splice in found.sentences:
            plain = greedy_ids(model, processor, inputs, found.visible_image_tokens, splice, before, LIMIT)
            assert list(splice.completion_ids) == plain
            before += splice.reference


@pytest.mark.parametrize("family", EXACT)
@torch.no_grad()
def test_kept_tokens_see_the_same_logits(family: str) -> None:
    model, processor = ZOO[family]()
    reader = ExampleReader(model, processor)
    example = reader.read(0, IMAGES[1], PROMPTS[1], REFERENCES[1], None)
    visible = torch.tensor([1, 4, 7])
    shown = reader.encode(example, example.images).inputs.show(visible)
    dropped = OutputHead(model)(run_decoder(model, [shown])[0, -len(example.turn.token_ids) - 1 :])
    inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[1])
    masked = masked_logits(model, inputs, tuple(visible.tolist()), list(example.turn.token_ids))
    torch.testing.assert_close(dropped, masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_refusals_say_why(family: str) -> None:
    model, processor = ZOO[family]()
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        sample(model, processor)
