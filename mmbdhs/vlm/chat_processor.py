"""From images, prompt and response to token ids, through the processor's public interface alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmbdhs.data import Messages
from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_TOKENS = 8  # enough context to tell how the text of the next token begins


class Processor(Protocol):
    """A processor of `transformers`, with a chat template and a fast tokenizer in its attribute `tokenizer`."""

    def __call__(self, *, text: Any, images: Any, return_tensors: Any, padding: Any) -> Any: ...

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool, **settings: Any
    ) -> Any: ...


@dataclass(frozen=True)
class Turn:
    """A prompt and its response as the chat template writes them.

    text: the rendered conversation.
    opening: index in `text` at which the generation prompt ends and the response's tokens begin.
    start: index of the response's first character that is not white space.
    token_ids: the response's tokens in that conversation.
    token_spans: for each token the [begin, end) of its characters in the user's text, without leading white space; the
        begin is -1 for a token that comes before the text.
    closing_ids: the tokens that the template writes after the response.
    """

    text: str
    opening: int
    start: int
    token_ids: tuple[int, ...]
    token_spans: tuple[tuple[int, int], ...]
    closing_ids: tuple[int, ...]


def render_turn(processor: Processor, messages: Messages, response: str) -> Turn:
    """Write prompt and assistant turn with the processor's chat template, and find the response's tokens in it.

    Raises ExampleError for messages that the template refuses, and for a template that changes the response.
    """
    plain = all(isinstance(message.get("content"), str) for message in messages)
    content = response if plain else [{"type": "text", "text": response}]
    text = _render(processor, [*messages, {"role": "assistant", "content": content}], False)
    prompt = render_prompt(processor, messages)
    body = response.strip()
    # Search after the prompt: the closing tokens may contain a short response, as "<|im_end|>" contains "end".
    start = text.find(body, common_length(text, prompt))
    if start < 0:
        start = text.rfind(body)
    if start < 0:
        raise ExampleError(f"references: the chat template must keep the text, {response!r} became {text!r}")
    opening = len(prompt) if text.startswith(prompt) else start
    return _turn(processor, text, opening, start, start + len(body), len(response) - len(response.lstrip()))


def render_prompt(processor: Processor, messages: Messages) -> str:
    """The prompt as the chat template writes it for generation."""
    return _render(processor, messages, True)


def reworded(processor: Processor, turn: Turn, response: str) -> Turn:
    """The turn with another response, tokenised in the first one's place; it ends with the response."""
    text = turn.text[: turn.start] + response.strip()
    return _turn(processor, text, turn.opening, turn.start, len(text), len(response) - len(response.lstrip()))


def _turn(processor: Processor, text: str, opening: int, start: int, end: int, lead: int) -> Turn:
    """The turn whose response is text[start:end]; `lead` characters of white space precede it in the user's text."""
    encoding = tokenizer_of(processor)(text, return_offsets_mapping=True)
    raw = encoding["offset_mapping"]
    inside = [i for i, (b, e) in enumerate(raw) if e > opening and b < end and e > b]
    first, stop = inside[0], inside[-1] + 1
    shift = lead - start
    spans = []
    for b, e in raw[first:stop]:
        b = e - len(text[b:e].lstrip()) if text[b:e].strip() else b
        spans.append((max(b, start) + shift if e > start else -1, max(min(e, end) + shift, 0)))
    ids = encoding["input_ids"]
    return Turn(text, opening, start, tuple(ids[first:stop]), tuple(spans), tuple(ids[stop:]))


def encode_turn(
    processor: Processor, turn: Turn, images: list[Image], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], int]:
    """The processor's output (batch size 1) over prompt and response, and the number of tokens before the response.

    device: takes all tensors.
    dtype: of the pixel values.

    Raises ExampleError if the processor does not arrive at the response tokens that its own tokenizer gives.
    """
    inputs = _call(processor, turn.text, images)
    end = inputs["input_ids"].shape[1] - len(turn.closing_ids)
    start = end - len(turn.token_ids)
    if tuple(inputs["input_ids"][0, start:end].tolist()) != turn.token_ids:
        raise ExampleError("processor: needs to tokenize text like processor.tokenizer, the reference's tokens differ")
    return _placed(first_tokens(inputs, end), device, dtype), start


def encode_prompt(
    processor: Processor, messages: Messages, images: list[Image], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The processor's output (batch size 1) over the prompt alone, ready for generation.

    device, dtype: as `encode_turn` takes them.
    """
    return _placed(_call(processor, render_prompt(processor, messages), images), device, dtype)


def first_tokens(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """A processor's output in which everything that describes tokens is cut to the first `length` of them."""
    shape = inputs["input_ids"].shape
    return {k: v[:, :length] if isinstance(v, Tensor) and v.shape == shape else v for k, v in inputs.items()}


def _placed(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return tree_map(place, dict(inputs))


def decode_after(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add to `context`: decode(context + ids) without decode(context)."""
    context = list(context)[-CONTEXT_TOKENS:]
    before = tokenizer.decode(context, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode([*context, *ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return whole[len(before) :]


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items at their beginning two sequences have in common."""
    shared = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(shared) if a != b), min(len(first), len(second)))


def tokenizer_of(processor: Processor) -> Any:
    """The processor's tokenizer. Raises ValueError for one that does not report character offsets."""
    tokenizer = getattr(processor, "tokenizer", None)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "processor: needs a .tokenizer that reports character offsets (a fast tokenizer), "
            f"got {type(tokenizer).__name__}"
        )
    return tokenizer


def _render(processor: Processor, messages: Messages, add_generation_prompt: bool) -> str:
    tokenizer = tokenizer_of(processor)
    if not any(getattr(holder, "chat_template", None) for holder in (processor, tokenizer)):
        raise ExampleError(
            "processor: needs a chat template to write prompts with (processor.chat_template), "
            f"{type(processor).__name__} has none"
        )
    try:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates raise jinja2's errors for messages that they do not take
        raise ExampleError(f"prompts: the chat template refused the messages ({error})") from error
    bos = tokenizer.bos_token
    # The tokenizer adds its own BOS; with a second one the prompt would differ from what the model was trained on.
    if bos and text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text[len(bos) :]
    return text


def _call(processor: Processor, text: str, images: list[Image]) -> Mapping[str, Any]:
    try:
        return processor(text=[text], images=[images], return_tensors="pt", padding=True)
    except Exception as error:
        raise ExampleError(f"processor: could not encode {len(images)} image(s) with {text!r}: {error}") from error
