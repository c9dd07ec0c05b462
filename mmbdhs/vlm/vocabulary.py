"""What the ids of a tokenizer mean to a model: text, vision input, the end of a response, or nothing at all."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from weakref import ref

from mmbdhs.errors import ExampleError
from mmbdhs.vlm.shared_tokenizer import SharedTokenizer

if TYPE_CHECKING:
    from mmbdhs.vlm.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

_VISION_ID_ATTRIBUTE = re.compile(r"(image|video|audio|vision|visual|boi|eoi).*(token_id|token_index)$")
_VISION_TOKEN = re.compile(r"image|img|video|vision|visual|media|patch|audio", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one tokenizer, as one model takes them.

    vision_ids: ids that stand for images and other input that is not text.
    unused_ids: rows of the output head for which the tokenizer has no token.
    special_tokens: the texts of the special tokens by id.
    size: how many tokens the tokenizer has, and rows the model's embeddings.
    tokenizer: whose ids these are, without keeping it.
    """

    vision_ids: frozenset[int]
    unused_ids: frozenset[int]
    special_tokens: dict[int, str]
    size: tuple[int, int]
    tokenizer: ref[Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, vlm: VLM, tokenizer: Any) -> Vocabulary:
        """The vocabulary of a model and a tokenizer, made once and again when either of them has grown.

        Raises ValueError for a tokenizer with ids that the model has no embeddings for.
        """
        tokenizer = tokenizer.inner if isinstance(tokenizer, SharedTokenizer) else tokenizer
        size = (len(tokenizer), vlm.embedding_count)
        known: Vocabulary | None = vlm.vocabularies.get(tokenizer)
        if known is None or known.size != size:
            known = vlm.vocabularies[tokenizer] = cls._made(vlm, tokenizer, size)
        return known

    @classmethod
    def _made(cls, vlm: VLM, tokenizer: Any, size: tuple[int, int]) -> Vocabulary:
        texts = {number: token for token, number in tokenizer.get_vocab().items()}
        if beyond := [repr(token) for number, token in sorted(texts.items()) if number >= size[1]]:
            raise ValueError(
                f"processor: needs a tokenizer with ids below the {size[1]} embeddings of {vlm.name}, got "
                f"{len(beyond)} token(s) beyond: {', '.join(beyond[:3])}. Call model.resize_token_embeddings, or pass "
                "the model's own processor"
            )
        head: Any = vlm.model.get_output_embeddings()
        rows: int = head.weight.shape[0]
        special = {number: t.content for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        configured = vlm.model.config.to_dict().items()
        vision = {value for name, value in configured if _VISION_ID_ATTRIBUTE.search(name) and isinstance(value, int)}
        vision |= {number for number, text in special.items() if _VISION_TOKEN.search(text)}
        unused = frozenset(range(rows)) - texts.keys()
        return cls(frozenset(i for i in vision if 0 <= i < rows), unused, special, size, ref(tokenizer))

    @cached_property
    def blank_ids(self) -> tuple[int, ...]:
        """The ids that add nothing to a text but white space: ends and other special tokens among them."""
        tokenizer = SharedTokenizer(self.tokenizer())
        ids = sorted(tokenizer.get_vocab().values())
        texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True)
        return tuple(i for i, text in zip(ids, texts, strict=True) if not text.strip())


def end_token_ids(vlm: VLM, tokenizer: Any) -> set[int]:
    """The ids that end a response."""
    configured = getattr(vlm.model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, (list, tuple)) else [configured]
    return {i for i in (*ends, tokenizer.eos_token_id) if i is not None}


class TextRule:
    """What text of data may not spell: tokens that stand for vision input, end a response, or frame a conversation.

    Such text would not be read as text. An image placeholder in a response, for instance, has no image.
    """

    def __init__(self, vlm: VLM, tokenizer: Any, chat_template: str) -> None:
        self.vocabulary = vocabulary = Vocabulary.of(vlm, tokenizer)
        self._tokenizer = tokenizer
        self.end_ids = end_token_ids(vlm, tokenizer)
        fixed = (tokenizer.bos_token_id, tokenizer.pad_token_id)
        special = vocabulary.special_tokens.items()
        framing = {i for i, text in special if len(text) > 1 and (text in chat_template or i in fixed)}
        # The unknown token stands for text that has no other. Some tokenizers pad with it, others with "!".
        self._forbidden = (vocabulary.vision_ids | self.end_ids | framing) - {tokenizer.unk_token_id}

    def require_text(self, name: str, text: str) -> None:
        """Raise ExampleError for text that spells such a token, or that cannot be written as UTF-8."""
        require_unicode(name, text)
        self.require_ids(name, self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def require_ids(self, name: str, ids: Iterable[int]) -> None:
        """The same for text as token ids."""
        found = next((i for i in ids if i in self._forbidden), None)
        if found is not None:
            raise ExampleError(
                f"{name}: needs text, got the token {self._tokenizer.convert_ids_to_tokens(found)!r} in it, which the "
                "model does not read as text. Images go into `images`, and the chat template writes the end"
            )

    def require_response(self, name: str, text: str) -> None:
        """`require_text` for a response, which must not be empty either."""
        if not text.strip():
            raise ExampleError(f"{name}: needs text, got {text!r}")
        self.require_text(name, text)

    def without_end(self, text: str) -> str:
        """The text without end tokens at its end, which the chat template or `closing` writes."""
        ends = [end for end in self._tokenizer.convert_ids_to_tokens(sorted(self.end_ids)) if end]
        while found := next((end for end in ends if text.rstrip().endswith(end)), None):
            text = text.rstrip().removesuffix(found).rstrip()
        return text

    def closing(self, token_ids: Sequence[int], closing_ids: Sequence[int]) -> list[int]:
        """What follows the tokens of an assistant turn, with one that ends generation.

        token_ids: the turn.
        closing_ids: what the chat template writes after it. If that is white space, the end token takes its place,
            because no model writes white space before it.
        """
        if self.end_ids.intersection((*token_ids, *closing_ids)):
            return list(closing_ids)
        if not self.end_ids:
            _warn_once("no token is known to end generation, so training does not teach the model to stop")
            return list(closing_ids)
        end = self._tokenizer.eos_token_id if self._tokenizer.eos_token_id in self.end_ids else min(self.end_ids)
        _warn_once(
            "the chat template writes no token that ends generation after a response, so %r is appended "
            "(append_eos=False leaves it out)",
            self._tokenizer.convert_ids_to_tokens(end),
        )
        kept = list(closing_ids) if self._tokenizer.decode(list(closing_ids)).strip() else []
        return [*kept, end]


def require_unicode(name: str, text: str) -> None:
    """Raise ExampleError for text with a lone surrogate, which is half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ExampleError(
            f"{name}: needs text that can be written as UTF-8, got the lone surrogate "
            f"U+{ord(text[error.start]):04X} at character {error.start}"
        ) from error


@lru_cache(maxsize=64)
def _warn_once(message: str, *values: str) -> None:
    _LOG.warning(message, *values)
