"""Rollouts for reinforcement learning: four sampled responses to an image prompt, and their log-probabilities.

A LLaVA-1.6 shape with random weights, 2,928 image tokens, responses of one length, temperature 1. "ours" prefills the
prompt once, decodes the responses together over it, and scores them in one packed row. "generate" is
`generate(num_return_sequences=4)` of transformers and one forward of the four rows whose logits are kept at the
responses alone; rows of one length need neither padding nor mask, its best case. "repeated" is the best that rows can
do: sampling and scoring encode the image once each, the prompt is prefilled once, and `generate` goes on from its
repeated cache. The log-probabilities that "ours" gives to the responses of the others are asserted equal to theirs.
"""

from __future__ import annotations

from typing import Any

import llava
import numpy as np
import torch
from llava import IMAGE_TOKENS, SEVEN_BILLION, Size
from measure import peak_memory, thread_counts, warm_median_of
from PIL import Image
from sampling import REFERENCE
from table import Options, Table
from torch import Tensor
from transformers import DynamicCache

from mmbdhs.decoding import vision_token_ids
from mmbdhs.logprobs import response_logps
from mmbdhs.sampling import SamplingConfig, sample_responses
from mmbdhs.vlm import VLM, encode_prompt

PROMPT = "Describe the image in detail."
RESPONSES = 4
COLUMNS = {
    **{"shape": "<45", "response_tokens": ">3d", "threads": ">1"},
    **{name: ">8.0f" for name in ("ours", "repeated", "generate")},
    **{"over_repeated": ">5.2f", "over_generate": ">5.2f", "difference": ">8.1e"},
    **{"ours_mib": ">5.0f", "generate_mib": ">5.0f"},
}


@torch.no_grad()
def main(options: Options) -> None:
    print("\nms for four responses and their log-probabilities; …_mib: peak above what was held before")
    sizes = [Size(layers=2, hidden=128)] if options.quick else [Size(layers=8, hidden=512)]
    if options.device.type == "cuda" and not options.quick:
        sizes.append(SEVEN_BILLION)
    with Table("rollout", COLUMNS, options) as table:
        for size in sizes:
            processor = llava.processor([REFERENCE, PROMPT, "USER: ASSISTANT:"] * 2)
            words = processor.tokenizer
            model = llava.model(size, len(words), words.convert_tokens_to_ids("<image>"), options.device)
            # No response ends early, so that all sides do the same work.
            words.eos_token = model.generation_config.eos_token_id = None
            for threads in thread_counts(options.device)[: 1 if options.quick else None]:
                torch.set_num_threads(threads)
                table.add(**measure(model, processor, 4 if options.quick else 64, options))


def measure(model: Any, processor: Any, tokens: int, options: Options) -> dict[str, Any]:
    """One row."""
    sides = Sides(model, processor, tokens)
    found = [sides.repeated()]
    ours_mib = peak_memory(sides.ours, options.device)
    generate_mib = peak_memory(lambda: found.append(sides.generate()), options.device)
    difference = max(sides.difference(*one) for one in found)
    assert difference < (1e-3 if model.dtype == torch.float32 else 0.5), f"log-probabilities differ by {difference:.1e}"
    seconds = warm_median_of(1 if options.quick else 3, sides.ours, sides.repeated, sides.generate)
    ours, repeated, generate = (1e3 * one for one in seconds)
    return {
        **{"shape": llava.name(model), "image_tokens": IMAGE_TOKENS, "responses": RESPONSES, "response_tokens": tokens},
        **{"ours": ours, "repeated": repeated, "generate": generate},
        **{"over_repeated": repeated / ours, "over_generate": generate / ours, "difference": difference},
        **{"ours_mib": ours_mib, "generate_mib": generate_mib},
    }


class Sides:
    """The ways to `tokens` tokens of each response, from an image on. Each returns ids and logps, [4, R]."""

    def __init__(self, model: Any, processor: Any, tokens: int) -> None:
        self._model, self._processor, self._tokens, self._seed = model, processor, tokens, 0
        rng = np.random.default_rng(0)
        self._image = Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8))
        suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        self._settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "suppress_tokens": suppressed, **lengths}

    def _prompt(self) -> dict[str, Any]:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        place = self._model.device, self._model.dtype
        return encode_prompt(self._processor, [{"role": "user", "content": content}], [self._image], *place)

    def ours(self) -> tuple[Tensor, Tensor]:
        self._seed += 1
        config = SamplingConfig(max_new_tokens=self._tokens, seed=self._seed)
        arguments = self._model, self._processor, [self._image], [PROMPT], config
        (found,) = sample_responses(*arguments, num_return_sequences=RESPONSES)
        ids = torch.tensor([one.scored_ids for one in found])
        return ids, response_logps(self._model, [self._prompt()], [list(ids)]).tokens[0]

    def difference(self, ids: Tensor, logps: Tensor) -> float:
        """The largest difference of these log-probabilities from those of packed rows."""
        own = response_logps(self._model, [self._prompt()], [list(ids)]).tokens[0]
        return float((own - logps).abs().max())

    def generate(self) -> tuple[Tensor, Tensor]:
        inputs = self._prompt()
        rows = self._model.generate(**inputs, **self._settings, num_return_sequences=RESPONSES)
        images = {name: inputs[name].repeat_interleave(RESPONSES, dim=0) for name in ("pixel_values", "image_sizes")}
        return self._scored(rows, input_ids=rows, **images)

    def repeated(self) -> tuple[Tensor, Tensor]:
        inputs = self._prompt()
        embeds, cache = self._embeds(inputs), DynamicCache()
        self._model.model.language_model(inputs_embeds=embeds[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(RESPONSES)
        prompt = inputs["input_ids"].repeat_interleave(RESPONSES, dim=0)
        mask = torch.ones_like(prompt)
        rows = self._model.generate(input_ids=prompt, attention_mask=mask, past_key_values=cache, **self._settings)
        # The forward that scores is another one, with gradients where a policy learns, and encodes the image itself.
        prefix = self._embeds(inputs).expand(RESPONSES, -1, -1)
        after = self._model.get_input_embeddings()(rows[:, prefix.shape[1] :])
        return self._scored(rows, inputs_embeds=torch.cat([prefix, after], dim=1))

    def _embeds(self, inputs: dict[str, Any]) -> Tensor:
        """The prompt as the decoder takes it, [1, P, hidden], its image encoded once."""
        inner = self._model.model
        embeds = inner.get_input_embeddings()(inputs["input_ids"])
        features = inner.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        is_image = (inputs["input_ids"] == self._model.config.image_token_id)[..., None]
        return embeds.masked_scatter(is_image, torch.cat(list(features)).to(embeds.dtype))

    def _scored(self, rows: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        ids = rows[:, -self._tokens :]
        kept = self._model(**inputs, use_cache=False, logits_to_keep=self._tokens + 1).logits[:, :-1]
        return ids, kept.float().log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
