"""Examples and prompts, read and encoded: what the user has becomes what the text decoder receives."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmbdhs.data import Images, Messages, as_messages, content_key, key_address, load_images
from mmbdhs.decoding import check_decoding
from mmbdhs.errors import ExampleError, NonFiniteError
from mmbdhs.vlm import (
    CONTEXT_TOKENS,
    VLM,
    DecoderInputs,
    Processor,
    Turn,
    capture_decoder_inputs,
    check_layers,
    encode_prompt,
    encode_turn,
    render_turn,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# What one bad example may raise. Any other error is a fault of the model or the library and ends the run.
EXAMPLE_ERRORS = (ExampleError, NonFiniteError)


@dataclass(frozen=True)
class Example:
    """An image prompt with its reference.

    index: its number in the lists or the stream.
    key: the user's key, or a hash of its content.
    address: the 64 bits (signed) that address its random draws.
    images: RGB images.
    turn: prompt and reference as the chat template writes them.
    reference: the chosen response.
    """

    index: int
    key: int | str
    address: int
    images: list[Image]
    turn: Turn
    reference: str


@dataclass(frozen=True)
class PromptExample:
    """An image prompt alone.

    index: its number in the lists or the stream.
    key: the user's key, or a hash of its content.
    images: RGB images.
    messages: the prompt's messages.
    """

    index: int
    key: Any
    images: list[Image]
    messages: Messages


@dataclass(frozen=True)
class EncodedExample:
    """An example as the decoder takes it.

    inputs: of the prompt, and of the reference if there is one.
    prompt_tail: the last ids of the prompt, as context for decoding the text that follows.
    """

    inputs: DecoderInputs
    prompt_tail: tuple[int, ...]


class ExampleReader:
    """Reads examples for one model and processor.

    generated: the most tokens that will follow prompt and reference.

    Raises UnsupportedModelError for a model in which hidden tokens cannot be left out.
    """

    def __init__(self, vlm: VLM, processor: Processor, generated: int = 0) -> None:
        self._vlm, self._processor, self._generated = vlm, processor, generated
        check_layers(vlm.decoder)

    def read(
        self, index: int, images: Images, prompt: str | Messages, reference: str, key: int | str | None
    ) -> Example:
        """An example from what the user has. Raises ExampleError for what cannot be sampled from."""
        if not isinstance(reference, str) or not reference.strip():
            raise ExampleError(f"references: needs text, got {reference!r}")
        loaded = load_images(images)
        messages = as_messages(prompt, len(loaded))
        key = content_key(messages, reference, loaded) if key is None else key
        turn = render_turn(self._processor, messages, reference)
        return Example(index, key, key_address(key), loaded, turn, reference)

    def read_prompt(self, index: int, images: Images, prompt: str | Messages, key: Any) -> PromptExample:
        """The same for a prompt without a reference."""
        loaded = load_images(images)
        messages = as_messages(prompt, len(loaded))
        return PromptExample(index, content_key(messages, "", loaded) if key is None else key, loaded, messages)

    def encode(self, example: Example, images: list[Image]) -> EncodedExample:
        """Encode an example with `images` in place of its own. Raises ExampleError for one beyond the context."""
        batch, length = encode_turn(self._processor, example.turn, images, self._vlm.device, self._vlm.dtype)
        return self._captured(batch, length)

    def encode_prompt(self, example: PromptExample) -> EncodedExample:
        """The same for a prompt without a reference."""
        batch = encode_prompt(self._processor, example.messages, example.images, self._vlm.device, self._vlm.dtype)
        return self._captured(batch, batch["input_ids"].shape[1])

    def _captured(self, batch: dict[str, Any], prompt_length: int) -> EncodedExample:
        ids = batch["input_ids"][0]
        if len(ids) > self._vlm.context_length:
            response_length = len(ids) - prompt_length
            raise ExampleError(
                f"{'references' if response_length else 'prompts'}: prompt and reference need at most "
                f"{self._vlm.context_length} tokens (the model's context), got {prompt_length} + {response_length}"
            )
        inputs = capture_decoder_inputs(self._vlm, batch, prompt_length)
        check_decoding(self._vlm, inputs, ids, len(ids) + self._generated)
        return EncodedExample(inputs, tuple(ids[:prompt_length][-CONTEXT_TOKENS:].tolist()))


def numbered(*columns: Iterable[Any], keys: Iterable[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Rows (index, *columns, key) of iterables of equal length; the key is None without `keys`."""
    rows = zip(*columns, strict=True)
    keyed = zip(rows, itertools.repeat(None), strict=False) if keys is None else zip(rows, keys, strict=True)
    return ((index, *row, key) for index, (row, key) in enumerate(keyed))
