"""Six questions about each image, as POPE asks them, against batched `generate` of transformers, on a LLaVA-1.6 shape.

2,928 image tokens, greedy, random weights, answers of eight tokens. "generate" is one left-padded batch of six prompts
for each image, which encodes the image and runs the prompt six times. "cached" is the best that can be written with
`generate`: it runs the image and what the prompts begin with once, repeats that cache six times, and generates from
there. Both get inputs that the processor has made beforehand; ours is timed with its reading and processing of images.
Every side's answers are asserted equal in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llava
import numpy as np
import torch
from llava import IMAGE_TOKENS, Size
from measure import peak_memory, thread_counts, warm_median_of
from PIL import Image
from table import Options, Table
from transformers import DynamicCache

from mmbdhs import SamplingConfig
from mmbdhs.data import load_images
from mmbdhs.decoding import vision_token_ids
from mmbdhs.evaluation import Question
from mmbdhs.evaluation.answers import Answerer
from mmbdhs.vlm import VLM, common_length

OBJECTS = ("dog", "red bus", "person", "traffic light", "dining table", "cup")
SUFFIX = "\nAnswer the question using a single word or phrase."
COLUMNS = {
    **{"shape": "<45", "questions": ">1d", "tokens": ">1d", "threads": ">1"},
    **{name: ">8.1f" for name in ("ours", "cached", "generate")},
    **{"over_cached": ">5.1f", "over_generate": ">5.1f", "equal": ">5.0%"},
}


@torch.no_grad()
def main(options: Options) -> None:
    print("\nms for a question; generate: one left-padded batch for each image; cached: from one shared prefix")
    size = Size(layers=2, hidden=128) if options.quick else Size(layers=4, hidden=512)
    texts = [f"Is there a {name} in the image?{SUFFIX}" for name in OBJECTS]
    with Table("evaluate", COLUMNS, options) as table, tempfile.TemporaryDirectory() as folder:
        processor = llava.processor([*texts, "USER: ASSISTANT:"] * 2)
        words = processor.tokenizer
        model = llava.model(size, len(words), words.convert_tokens_to_ids("<image>"), options.device)
        llava.never_ending(model, words)
        questions = _questions(Path(folder), texts)
        for threads in thread_counts(options.device)[: 1 if options.quick else None]:
            torch.set_num_threads(threads)
            table.add(**measure(model, processor, questions, options))


def _questions(folder: Path, texts: Sequence[str]) -> list[Question]:
    """About one image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := folder / "image.png")
    return [Question(str(number), path, text) for number, text in enumerate(texts)]


def measure(model: Any, processor: Any, questions: list[Question], options: Options) -> dict[str, Any]:
    """One row."""
    tokens, runs = (2, 1) if options.quick else (8, 3)
    answerer = Answerer(model, processor, SamplingConfig(temperature=0, max_new_tokens=tokens))

    def ours() -> list[str]:
        return list(answerer.answers(questions))

    baseline = Generation(model, processor, questions, tokens)
    found = ours()
    equal = min(_equal_share(found, side()) for side in (baseline.generate, baseline.cached))
    assert equal == 1 or model.dtype != torch.float32, f"only {equal:.1%} of the answers agree"
    sides = (ours, baseline.cached, baseline.generate)
    memory = [peak_memory(side, options.device) for side in sides]
    own, cached, plain = (seconds / len(questions) for seconds in warm_median_of(runs, *sides))
    return {
        "shape": llava.name(model),
        **{"image_tokens": IMAGE_TOKENS, "questions": len(questions)},
        **{"tokens": tokens, "ours": 1e3 * own, "cached": 1e3 * cached, "generate": 1e3 * plain},
        **{"over_cached": cached / own, "over_generate": plain / own, "equal": equal},
        "peak_mib": dict(zip(("ours", "cached", "generate"), map(round, memory), strict=True)),
    }


def _equal_share(first: Sequence[str], second: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


class Generation:
    """Both baselines, image by image."""

    def __init__(self, model: Any, processor: Any, questions: Sequence[Question], tokens: int) -> None:
        self._model, self._processor, self._words = model, processor, processor.tokenizer
        suppressed = vision_token_ids(VLM.of(model), self._words)
        self._settings = {"do_sample": False, "max_new_tokens": tokens, "suppress_tokens": suppressed}
        self._batches = [
            self._inputs(questions[begin : begin + len(OBJECTS)]) for begin in range(0, len(questions), len(OBJECTS))
        ]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """The prompts of one image, left-padded."""
        content = [[{"type": "image"}, {"type": "text", "text": question.text}] for question in questions]
        messages = [[{"role": "user", "content": parts}] for parts in content]
        texts = [self._processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
        images = [load_images(str(question.image)) for question in questions]
        inputs = self._processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        return inputs.to(self._model.device, self._model.dtype)

    def generate(self) -> list[str]:
        """One batch for each image."""
        return [
            text for inputs in self._batches for text in self._texts(self._model.generate(**inputs, **self._settings))
        ]

    def cached(self) -> list[str]:
        """What the prompts begin with once, its cache repeated for each."""
        return [text for inputs in self._batches for text in self._texts(self._from_prefix(inputs))]

    def _from_prefix(self, inputs: Any) -> torch.Tensor:
        rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        shared = min(common_length(rows[0].tolist(), row.tolist()) for row in rows)
        cache = DynamicCache()
        image = {name: inputs[name][:1] for name in ("pixel_values", "image_sizes")}
        prefix = rows[0][None, :shared]
        self._model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1, **image)
        cache.batch_repeat_interleave(len(rows))
        width = max(len(row) for row in rows) - shared
        ids = torch.full((len(rows), shared + width), self._words.pad_token_id, device=prefix.device)
        mask = torch.zeros_like(ids)
        mask[:, :shared], ids[:, :shared] = 1, prefix
        for number, row in enumerate(rows):
            ids[number, shared + width - (len(row) - shared) :] = row[shared:]
            mask[number, shared + width - (len(row) - shared) :] = 1
        return self._model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **self._settings)

    def _texts(self, ids: torch.Tensor) -> list[str]:
        new = ids[:, -self._settings["max_new_tokens"] :]
        return [text.strip() for text in self._words.batch_decode(new, skip_special_tokens=True)]
