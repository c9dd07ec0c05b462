"""Greedy answers by a model's own `generate`, one at a time: the plain twin of `answers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmbdhs.data import as_messages
from mmbdhs.decoding import vision_token_ids
from mmbdhs.vlm import VLM, Processor, encode_prompt, render_prompt, tokenizer_of

if TYPE_CHECKING:
    from PIL.Image import Image

_PLAIN: Mapping[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@torch.no_grad()
def generated(vlm: VLM, processor: Processor, text: str, images: Sequence[Image], limit: int) -> str:
    """The greedy answer to a user's turn, whatever else the model's generation config says, and without tokens that
    stand for images.

    text: the turn.
    images: come first; there may be none.
    limit: the most tokens of the answer.
    """
    tokenizer, messages = tokenizer_of(processor), as_messages(text, len(images))
    inputs = (
        encode_prompt(processor, messages, list(images), vlm.device, vlm.dtype)
        if images
        else tokenizer(render_prompt(processor, messages), return_tensors="pt").to(vlm.device)
    )
    model: Any = vlm.model
    suppressed = vision_token_ids(vlm, tokenizer)
    ids = model.generate(**inputs, **_PLAIN, max_new_tokens=limit, suppress_tokens=suppressed)
    begin = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(tokenizer.decode(ids[0, begin:], skip_special_tokens=True)).strip()
