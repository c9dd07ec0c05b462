"""Examples and prompts, read and encoded: what the user has becomes what the text decoder receives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmbdhs.data import (
    Images,
    Messages,
    Prompt,
    as_chat,
    as_key,
    as_response,
    content_key,
    is_null,
    key_address,
    load_images,
)
from mmbdhs.decoding import check_decoding
from mmbdhs.errors import ExampleError, NonFiniteError
from mmbdhs.sampling.image_corruption import Noise
from mmbdhs.vlm import (
    CONTEXT_TOKENS,
    VLM,
    DecoderInputs,
    Grids,
    Processor,
    Turn,
    VisionOutput,
    capture_decoder_inputs,
    check_layers,
    check_messages,
    encode_prompt,
    encode_turn,
    image_grids,
    render_turn,
    text_rule,
    vision_outputs,
)

if TYPE_CHECKING:
    from PIL.Image import Image

R = TypeVar("R")

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
    template_arguments: what else the chat template takes.
    """

    index: int
    key: Any
    images: list[Image]
    messages: Messages
    template_arguments: dict[str, Any]


@dataclass(frozen=True)
class ProcessedExample:
    """An example as the processor leaves it, on the CPU.

    inputs: the processor's output, of batch size 1.
    prompt_length: number of tokens before the reference.
    image_count: number of its images.
    """

    inputs: dict[str, Any]
    prompt_length: int
    image_count: int


@dataclass(frozen=True)
class EncodedExample:
    """An example as the decoder takes it.

    inputs: of the prompt, and of the reference if there is one.
    prompt_tail: the last ids of the prompt, as context for decoding the text that follows.
    image_grids: rows and columns of each image's tokens; None where they form no plain grid.
    """

    inputs: DecoderInputs
    prompt_tail: tuple[int, ...]
    image_grids: Grids | None = None


class ExampleReader:
    """Reads examples for one model and processor. `encode` runs the model; the other methods may run in any thread.

    generated: the most tokens that will follow prompt and reference.

    Raises UnsupportedModelError for a model in which hidden tokens cannot be left out, and ValueError for a processor
    that does not fit the model.
    """

    def __init__(self, vlm: VLM, processor: Processor, generated: int = 0) -> None:
        self._vlm, self._processor, self._generated = vlm, processor, generated
        self.rule = text_rule(vlm, processor)
        check_layers(vlm.decoder)

    def read(self, index: int, images: Images, prompt: Prompt, reference: str, key: int | str | None) -> Example:
        """An example from what the user has. Raises ExampleError for what cannot be sampled from.

        reference: end tokens at its end are dropped, because the chat template writes its own.
        """
        given = as_response(reference, "references")
        if not isinstance(given, str):
            raise ExampleError("references: needs one assistant turn of text, got several turns or more than text")
        text = self.rule.without_end(given)
        found = self._read(index, images, prompt, text, key)
        key = as_key(found.key)
        turn = render_turn(self._processor, found.messages, text, found.template_arguments)
        self.rule.require_ids("references", turn.own_ids)
        if len(turn.token_ids) > self._vlm.context_length:  # known before the image and the sentences are looked at
            raise self._too_long("references", 0, len(turn.token_ids))
        return Example(index, key, key_address(key), found.images, turn, text)

    def read_prompt(self, index: int, images: Images, prompt: Prompt, key: Any) -> PromptExample:
        """The same for a prompt without a reference."""
        return self._read(index, images, prompt, "", key)

    def _read(self, index: int, images: Images, prompt: Prompt, reference: str, key: Any) -> PromptExample:
        loaded = load_images(images)
        chat = as_chat(prompt, len(loaded))
        messages: Any = chat.messages
        check_messages(self.rule, "prompts", messages)
        key = content_key(chat, reference, loaded) if is_null(key) else key
        return PromptExample(index, key, loaded, messages, chat.template_arguments)

    def process(self, example: Example, noise: Noise | None = None) -> ProcessedExample:
        """Process an example, with noise on its images. Raises ExampleError for one beyond the context."""
        images = example.images if noise is None else noise.of_images(example.images)
        inputs, length = encode_turn(self._processor, example.turn, images, torch.device("cpu"), self._vlm.dtype)
        return self._fitting(inputs if noise is None else noise.of_inputs(inputs), length, len(images))

    def process_prompt(self, example: PromptExample) -> ProcessedExample:
        """The same for a prompt without a reference."""
        place = torch.device("cpu"), self._vlm.dtype
        inputs = encode_prompt(self._processor, example.messages, example.images, *place, example.template_arguments)
        return self._fitting(inputs, inputs["input_ids"].shape[1], len(example.images))

    def _fitting(self, inputs: dict[str, Any], prompt_length: int, image_count: int) -> ProcessedExample:
        length = inputs["input_ids"].shape[1]
        if length > self._vlm.context_length:
            fits_alone = prompt_length < min(length, self._vlm.context_length)
            name = "references" if fits_alone else "prompts"
            raise self._too_long(name, prompt_length, length - prompt_length)
        return ProcessedExample(inputs, prompt_length, image_count)

    def encode(self, examples: Sequence[ProcessedExample]) -> list[EncodedExample | Exception]:
        """Encode the images, and what surrounds them, as the text decoder takes them.

        Returns an example error in place of an example that has one.
        """
        device = self._vlm.device
        place = partial(tree_map, lambda value: value.to(device) if isinstance(value, Tensor) else value)
        placed = [replace(example, inputs=place(example.inputs)) for example in examples]
        vision = vision_outputs(self._vlm, [example.inputs for example in placed])
        return [attempt(self._encode, *arguments) for arguments in zip(placed, vision, strict=True)]

    def _encode(self, example: ProcessedExample, vision: VisionOutput | None) -> EncodedExample:
        length, ids = example.prompt_length, example.inputs["input_ids"][0]
        inputs = capture_decoder_inputs(self._vlm, example.inputs, length, vision)
        check_decoding(self._vlm, inputs, ids, len(ids) + self._generated)
        grids = image_grids(self._vlm, example.inputs, inputs.image_positions, example.image_count)
        return EncodedExample(inputs, tuple(ids[:length][-CONTEXT_TOKENS:].tolist()), grids)

    def _too_long(self, name: str, prompt_length: int, response_length: int) -> ExampleError:
        return ExampleError(
            f"{name}: prompt and reference need at most {self._vlm.context_length} tokens (the model's context), got "
            f"{prompt_length or 'the prompt'} + {response_length}"
        )


def attempt(function: Callable[..., R], *arguments: Any) -> R | Exception:
    """The result of a call, or its example error."""
    try:
        return function(*arguments)
    except EXAMPLE_ERRORS as error:
        return error


def numbered(*columns: Iterable[Any], keys: Iterable[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Rows (index, *columns, key) of iterables of equal length; the key is None without `keys`."""
    rows = zip(*columns, strict=True)
    keyed = zip(rows, itertools.repeat(None), strict=False) if keys is None else zip(rows, keys, strict=True)
    return ((index, *row, key) for index, (row, key) in enumerate(keyed))
