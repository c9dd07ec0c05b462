"""POVID's distortion against a plain forward of the noisy image."""

from __future__ import annotations

import torch
from helpers import tiny_models
from helpers.plain import IMAGES, PROMPTS, REFERENCES, masked_logits, prompt_inputs

from mmbdhs import povid_sample
from mmbdhs.data.keys import key_address
from mmbdhs.decoding.token_sampling import vision_token_ids
from mmbdhs.sampling.image_corruption import Noise
from mmbdhs.vlm import VLM


def test_povid_predicts_each_token_in_one_pass() -> None:
    model, processor = tiny_models.llava()
    results = povid_sample(model, processor, IMAGES, PROMPTS, REFERENCES, noise_steps=500, seed=1)
    for result, image, prompt, reference in zip(results, IMAGES, PROMPTS, REFERENCES, strict=True):
        noisy = Noise(500, "clip", 1, key_address(result.key), 1).of_images([image])
        ids = processor.tokenizer(" " + reference)["input_ids"]
        logits = masked_logits(model, prompt_inputs(processor, noisy, prompt), tuple(range(36)), ids)[:-1]
        logits[:, vision_token_ids(VLM.of(model), processor.tokenizer)] = -torch.inf
        assert list(result.response_ids) == logits.argmax(-1).tolist()
