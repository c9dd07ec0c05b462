"""One example, read and encoded: images, prompt and reference become what the text decoder receives."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmbdhs.data import as_messages, content_key, key_address, load_images
from mmbdhs.decoding import probe
from mmbdhs.errors import NonFiniteError
from mmbdhs.vlm import (
    CONTEXT_TOKENS,
    DecoderInputs,
    Turn,
    capture_decoder_inputs,
    check_layers,
    context_length,
    encode,
    image_token_id,
    input_device,
    render_turn,
)

# What one bad example may raise; anything else is a fault of the model or the library and ends the run.
EXAMPLE_ERRORS = (ValueError, TypeError, OSError, NonFiniteError)


@dataclass(frozen=True)
class Example:
    """address: the 64 bits (signed) under which its random draws stand."""

    index: int
    key: int | str
    address: int
    images: list[Any]
    turn: Turn
    reference: str


@dataclass(frozen=True)
class EncodedExample:
    """inputs: of prompt and reference together.
    prompt_tail: the last ids before the reference, for decoding the text that follows."""

    inputs: DecoderInputs
    prompt_tail: tuple[int, ...]


class ExampleReader:
    """Reads examples for one model and processor; `generated` tokens at most will follow prompt and reference."""

    def __init__(self, model: nn.Module, processor: Any, generated: int = 0) -> None:
        self._model, self._processor = model, processor
        image_token_id(model)  # or there is nothing to hide
        check_layers(model)
        self._longest, self._generated = context_length(model), generated

    def read(self, index: int, images: Any, prompt: Any, reference: str, key: int | str | None) -> Example:
        """Raises ValueError or TypeError for what cannot be sampled from."""
        if not isinstance(reference, str) or not reference.strip():
            raise ValueError(f"references: needs text, got {reference!r}")
        loaded = load_images(images)
        messages = as_messages(prompt, len(loaded))
        key = content_key(messages, reference, loaded) if key is None else key
        turn = render_turn(self._processor, messages, reference)
        return Example(index, key, key_address(key), loaded, turn, reference)

    def encode(self, example: Example, images: list[Any]) -> EncodedExample:
        """Encode the example with `images` in place of its own."""
        model = self._model
        batch, prompt_length = encode(self._processor, example.turn, images, input_device(model), model.dtype)
        ids = batch["input_ids"][0]
        if len(ids) > self._longest:
            raise ValueError(
                f"references: prompt and reference need at most {self._longest} tokens (the model's context), "
                f"got {prompt_length} + {len(ids) - prompt_length}"
            )
        inputs = capture_decoder_inputs(self._model, batch, prompt_length)
        probe(self._model, inputs, ids, len(ids) + self._generated)
        return EncodedExample(inputs, tuple(ids[:prompt_length][-CONTEXT_TOKENS:].tolist()))


def numbered_examples(
    images: Iterable, prompts: Iterable, references: Iterable, keys: Iterable | None
) -> Iterator[tuple]:
    triples = zip(images, prompts, references, strict=True)
    keyed = zip(triples, itertools.repeat(None), strict=False) if keys is None else zip(triples, keys, strict=True)
    return ((index, *triple, key) for index, (triple, key) in enumerate(keyed))
