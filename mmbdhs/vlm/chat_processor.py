"""From images, prompt and response to token ids, through the processor's public interface alone."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from mmbdhs.checks import kind_of
from mmbdhs.data import Messages, message_text
from mmbdhs.errors import ExampleError
from mmbdhs.vlm.shared_tokenizer import SharedTokenizer, TakesTurns
from mmbdhs.vlm.vocabulary import TextRule, require_unicode

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmbdhs.vlm.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

CONTEXT_TOKENS = 8  # enough context to tell how the text of the next token begins
_STAND_IN = "0response0"  # shows what a chat template writes around a response


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

    @property
    def own_ids(self) -> list[int]:
        """The tokens of the user's text, without those that the template writes before it."""
        return [token for token, (begin, _) in zip(self.token_ids, self.token_spans, strict=True) if begin >= 0]


def render_turn(
    processor: Processor,
    messages: Messages,
    response: str,
    arguments: Mapping[str, Any] | None = None,
    name: str = "references",
) -> Turn:
    """Write prompt and assistant turn with the processor's chat template, and find the response's tokens in it.

    arguments: what `apply_chat_template` takes besides the messages.
    name: the caller's argument or column that holds the response, for error messages.

    Raises ExampleError for messages that the template refuses, and for a template that changes the response.
    """

    def rendered(content: str) -> str:
        part = content if plain else [{"type": "text", "text": content}]
        return _render(processor, [*messages, {"role": "assistant", "content": part}], False, arguments)

    require_unicode(name, response)
    plain = all(isinstance(message.get("content"), str) for message in messages)
    body = response.strip()
    text, prompt = rendered(response), render_prompt(processor, messages, arguments)
    start = _start_in_frame(text, body, rendered(_STAND_IN))
    if start < 0:  # the template writes something else around this response, such as its thoughts
        start = text.find(body, common_length(text, _render(processor, messages, False, arguments)))
    if start < 0:
        raise ExampleError(f"{name}: the chat template must keep the text, {response!r} became {text!r}")
    opening = len(prompt) if text.startswith(prompt) else start
    turn = _turn(processor, text, opening, start, start + len(body), len(response) - len(response.lstrip()))
    if not turn.own_ids:
        raise ExampleError(f"{name}: needs text that the tokenizer has tokens for, got {response!r}")
    return turn


def _start_in_frame(text: str, body: str, frame: str) -> int:
    """Where the response begins in the rendered text, or -1 if that differs from the frame in more than the response.

    frame: the conversation rendered with the stand-in as the response.
    """
    before, found, after = frame.rpartition(_STAND_IN)
    inner = text[len(before) : len(text) - len(after)]
    fits = found and text == before + inner + after and inner.strip() == body
    return len(before) + len(inner) - len(inner.lstrip()) if fits else -1


def render_prompt(processor: Processor, messages: Messages, arguments: Mapping[str, Any] | None = None) -> str:
    """The prompt as the chat template writes it for generation."""
    return _render(processor, messages, True, arguments)


def render_turns(
    processor: Processor, messages: Messages, response: Messages, arguments: Mapping[str, Any] | None = None
) -> tuple[Turn, list[bool]]:
    """`render_turn` for a response of several messages, or of one with more than text.

    Returns the turn, whose `token_ids` are all tokens after the generation prompt, and for each of them whether the
    assistant writes it; what follows the beginning of the last assistant turn always counts as written. Raises
    ExampleError for several turns where the template does not mark the assistant's tokens with {% generation %}.
    """
    prompt = render_prompt(processor, messages, arguments)
    text = _render(processor, [*messages, *response], False, arguments)
    if not text.startswith(prompt):
        raise ExampleError(f"responses: the chat template must begin with the prompt {prompt!r}, got {text!r}")
    spans = [(len(prompt), len(text))]
    if len(response) > 1:
        spans = _assistant_spans(processor, [*messages, *response], arguments, text)
    encoding = tokenizer_of(processor)(text, return_offsets_mapping=True)
    pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    after = [(token, b, e) for token, (b, e) in pairs if e > len(prompt)]
    last = spans[-1][0]
    counted = [e > last or any(e > begin and b < end for begin, end in spans) for _, b, e in after]
    ids = tuple(token for token, _, _ in after)
    return Turn(text, len(prompt), len(prompt), ids, ((-1, 0),) * len(ids), ()), counted


def _assistant_spans(
    processor: Processor, messages: Messages, arguments: Mapping[str, Any] | None, text: str
) -> list[tuple[int, int]]:
    """The characters [begin, end) of `text` that the chat template marks as the assistant's."""
    template, tokenizer = chat_template(processor), tokenizer_of(processor)
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise ExampleError(
            "responses: needs one assistant turn, or a chat template that marks the assistant's tokens with "
            f"{{% generation %}}, got the roles {[message['role'] for message in messages]}"
        )
    variables = {**tokenizer.special_tokens_map, **(arguments or {})}
    rendered: Any = render_jinja_template(
        conversations=[messages], chat_template=template, return_assistant_tokens_mask=True, **variables
    )
    (whole,), (spans,) = rendered
    removed = len(whole) - len(text)  # a beginning of sequence that the tokenizer writes itself
    return [(begin - removed, end - removed) for begin, end in spans]


def reworded(processor: Processor, turn: Turn, response: str) -> Turn:
    """The turn with another response, tokenised in the first one's place; it ends with the response."""
    text = turn.text[: turn.start] + response.strip()
    return _turn(processor, text, turn.opening, turn.start, len(text), len(response) - len(response.lstrip()))


def _turn(processor: Processor, text: str, opening: int, start: int, end: int, lead: int) -> Turn:
    """The turn whose response is text[start:end]; `lead` characters of white space precede it in the user's text."""
    encoding = tokenizer_of(processor)(text, return_offsets_mapping=True)
    raw = encoding["offset_mapping"]
    inside = [i for i, (b, e) in enumerate(raw) if e > opening and b < end and e > b]
    first, stop = (inside[0], inside[-1] + 1) if inside else (len(raw), len(raw))
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
    processor: Processor,
    messages: Messages,
    images: list[Image],
    device: torch.device,
    dtype: torch.dtype,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The processor's output (batch size 1) over the prompt alone, ready for generation.

    device, dtype: as `encode_turn` takes them.
    arguments: as `render_turn` takes them.
    """
    return _placed(_call(processor, render_prompt(processor, messages, arguments), images), device, dtype)


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
    """The processor's tokenizer. Raises TypeError for anything but a processor, and ValueError for a tokenizer that
    does not report character offsets."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise TypeError(
            f"processor: needs a processor with a tokenizer (AutoProcessor.from_pretrained), got {kind_of(processor)}"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "processor: needs a .tokenizer that reports character offsets (a fast tokenizer), "
            f"got {type(tokenizer).__name__}"
        )
    return tokenizer


def shared_processor(processor: Processor) -> Processor:
    """The processor for several threads: calls of its tokenizers take turns, and all else runs side by side.

    Raises the errors of `tokenizer_of`.
    """
    tokenizer = tokenizer_of(processor)
    if isinstance(processor, ProcessorMixin) and vars(processor).get("tokenizer") is tokenizer:
        shared = copy.copy(processor)
        for name, value in vars(processor).items():
            if isinstance(value, PreTrainedTokenizerBase):
                setattr(shared, name, SharedTokenizer(value))
        return shared
    _announce_turns(type(processor).__name__)
    whole: Any = TakesTurns(processor, SharedTokenizer(tokenizer).lock)
    whole.tokenizer = SharedTokenizer(tokenizer)
    return whole


@lru_cache(maxsize=64)
def _announce_turns(name: str) -> None:
    _LOG.info("images are processed one at a time: %s is no ProcessorMixin with a tokenizer that can be locked", name)


def chat_template(processor: Processor) -> str:
    """The processor's chat template. Raises ValueError for one without."""
    holders = (processor, tokenizer_of(processor))
    found = next((found for holder in holders if (found := getattr(holder, "chat_template", None))), None)
    if found is None:
        raise ValueError(
            "processor: needs a chat template to write prompts with (processor.chat_template), "
            f"{type(processor).__name__} has none"
        )
    return str(found)


def text_rule(vlm: VLM, processor: Processor) -> TextRule:
    """What text of data may not spell, for a model and its processor."""
    return TextRule(vlm, tokenizer_of(processor), chat_template(processor))


def check_messages(rule: TextRule, name: str, messages: Messages) -> None:
    """Raise ExampleError for messages with text that is not read as text."""
    for message in messages:
        rule.require_text(name, message_text(message))


def _render(
    processor: Processor, messages: Messages, add_generation_prompt: bool, arguments: Mapping[str, Any] | None
) -> str:
    tokenizer = tokenizer_of(processor)
    chat_template(processor)
    try:
        text: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **(arguments or {})
        )
    except Exception as error:  # templates raise jinja2's errors for messages that they do not take
        raise ExampleError(f"prompts: the chat template refused the messages ({error})") from error
    require_unicode("prompts", text)
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
