"""From what the user has (image, prompt, reference) to token ids, through the processor's public face alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmbdhs.data import Messages

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_TOKENS = 8  # enough to tell how the text of the tokens after them begins


@dataclass(frozen=True)
class Turn:
    """A prompt and its response as the chat template writes them.

    text: the rendered conversation.
    opening: index in `text` where the generation prompt ends and the response's tokens begin.
    start: index of the response's first character that is not white space.
    token_ids: the response's tokens, as they stand in that conversation.
    token_spans: for each, the [begin, end) of its characters in the user's text, leading white space left out; -1 as
        the begin of a token that stands before the text.
    closing_ids: the tokens that the template puts after them.
    """

    text: str
    opening: int
    start: int
    token_ids: tuple[int, ...]
    token_spans: tuple[tuple[int, int], ...]
    closing_ids: tuple[int, ...]


def render_turn(processor: Any, messages: Messages, reference: str) -> Turn:
    """Write prompt + assistant turn with the processor's chat template and find the reference's tokens in it."""
    plain = all(isinstance(message.get("content"), str) for message in messages)
    content = reference if plain else [{"type": "text", "text": reference}]
    text = _render(processor, [*messages, {"role": "assistant", "content": content}], False)
    prompt = _render(processor, messages, True)
    body = reference.strip()
    start = text.rfind(body)
    if start < 0:
        raise ValueError(f"references: the chat template must keep the text, {reference!r} became {text!r}")
    opening = len(prompt) if text.startswith(prompt) else start
    return _turn(processor, text, opening, start, start + len(body), len(reference) - len(reference.lstrip()))


def reworded(processor: Any, turn: Turn, response: str) -> Turn:
    """The turn with another response, tokenised anew in its place; it ends with the response."""
    text = turn.text[: turn.start] + response.strip()
    return _turn(processor, text, turn.opening, turn.start, len(text), len(response) - len(response.lstrip()))


def _turn(processor: Any, text: str, opening: int, start: int, end: int, lead: int) -> Turn:
    """`lead` characters of white space stand before the response in the user's text."""
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


def encode(
    processor: Any, turn: Turn, images: list[Image], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], int]:
    """The processor's output (batch size 1) over prompt + reference, pixels in `dtype`, and the number of tokens before
    the reference.

    Raises ValueError if the processor does not arrive at the reference tokens that its own tokenizer gives.
    """
    inputs = _call(processor, turn.text, images)
    shape = inputs["input_ids"].shape
    end = shape[1] - len(turn.closing_ids)
    start = end - len(turn.token_ids)
    if tuple(inputs["input_ids"][0, start:end].tolist()) != turn.token_ids:
        raise ValueError("processor: needs to tokenize text like processor.tokenizer, the reference's tokens differ")

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return tree_map(place, first_tokens(inputs, end)), start


def first_tokens(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """A processor's output with what it says of tokens cut to the first `length` of them."""
    shape = inputs["input_ids"].shape
    return {k: v[:, :length] if isinstance(v, Tensor) and v.shape == shape else v for k, v in inputs.items()}


def decode_after(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add after `context`: decode(context + ids) without decode(context)."""
    context = list(context)[-CONTEXT_TOKENS:]
    before = tokenizer.decode(context, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode([*context, *ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return whole[len(before) :]


def _render(processor: Any, messages: Messages, add_generation_prompt: bool) -> str:
    tokenizer = tokenizer_of(processor)
    if not any(getattr(holder, "chat_template", None) for holder in (processor, tokenizer)):
        raise ValueError(
            "processor: needs a chat template to write prompts with (processor.chat_template), "
            f"{type(processor).__name__} has none"
        )
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    bos = tokenizer.bos_token
    # The tokenizer adds its own; a second one would make another prompt than the one the model was trained on.
    if bos and text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text[len(bos) :]
    return text


def tokenizer_of(processor: Any) -> Any:
    """The processor's tokenizer, which must report character offsets."""
    tokenizer = getattr(processor, "tokenizer", None)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "processor: needs a .tokenizer that reports character offsets (a fast tokenizer), "
            f"got {type(tokenizer).__name__}"
        )
    return tokenizer


def _call(processor: Any, text: str, images: list[Image]) -> Mapping[str, Any]:
    try:
        return processor(text=[text], images=[images], return_tensors="pt", padding=True)
    except Exception as error:
        raise ValueError(f"processor: could not encode {len(images)} image(s) with {text!r}: {error}") from error
