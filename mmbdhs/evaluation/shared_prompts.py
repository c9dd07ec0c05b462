"""The prompts of several questions about one image: what they begin with, and whether that part may run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmbdhs.data import load_images
from mmbdhs.errors import ExampleError
from mmbdhs.evaluation.benchmark import Question
from mmbdhs.sampling import EXAMPLE_ERRORS, ExampleReader, ProcessedExample
from mmbdhs.vlm import (
    VLM,
    DecoderInputs,
    Processor,
    Vocabulary,
    agree,
    common_length,
    logits_of,
    render_prompt,
    run_decoder,
    tokenizer_of,
)

_IMAGE_TOKENS, _TEXT_TOKENS = 8, 16  # of the shared part: enough to see whether they see what follows


@dataclass(frozen=True)
class SharedPrompts:
    """The prompts of questions about one image.

    example: the longest of the prompts, as the processor leaves it.
    shared: how many tokens all prompts begin with.
    suffixes: the token ids of each prompt after these.
    """

    example: ProcessedExample
    shared: int
    suffixes: list[list[int]]


def shared_prompts(
    vlm: VLM, reader: ExampleReader, processor: Processor, questions: Sequence[Question]
) -> SharedPrompts | None:
    """The prompts of different questions about one image, or None if they may differ before its end.

    The processor runs over the longest prompt alone. Raises ExampleError that names a question that cannot be asked.
    """
    tokenizer = tokenizer_of(processor)
    with naming(questions[0]):
        images = load_images(str(questions[0].image))
    examples, texts = [], []
    for question in questions:
        with naming(question):
            examples.append(one := reader.read_prompt(0, images, question.text, question.id))
            texts.append(render_prompt(processor, one.messages, one.template_arguments))
    longest = max(range(len(texts)), key=lambda number: len(tokenizer(texts[number])["input_ids"]))
    with naming(questions[longest]):
        processed = reader.process_prompt(examples[longest])
    whole = processed.inputs["input_ids"][0].tolist()
    if len(texts) == 1:
        return SharedPrompts(processed, len(whole), [[]])
    begin = _end_of_images(vlm, tokenizer, whole)
    tails = _tails(tokenizer, whole[begin - 1 :], texts, texts[longest])
    if tails is None or tails[longest] != whole[begin:]:
        return None
    common = min(common_length(tails[longest], other) for other in tails)
    return SharedPrompts(processed, begin + common, [tail[common:] for tail in tails])


def _end_of_images(vlm: VLM, tokenizer: Any, ids: list[int]) -> int:
    """The number of tokens up to the last image token, and the special tokens that follow it at once."""
    special = Vocabulary.of(vlm, tokenizer).special_tokens
    images = (number for number, token in enumerate(ids) if token == vlm.image_token_id)
    end = max(images, default=len(ids) - 1) + 1
    while end < len(ids) and ids[end] in special:
        end += 1
    return end


def _tails(tokenizer: Any, ids: list[int], texts: list[str], known: str) -> list[list[int]] | None:
    """The tokens of each prompt after the first of `ids`, a special token, with which no text merges. None where the
    text after that token cannot be told.

    ids: the end of the prompt `known`, as the processor leaves it. After an image it may write text of its own, which
        merges with the question (Gemma 3: line breaks, Idefics2: a space).
    """
    first, *rest = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (ids[:1], ids[1:]))
    differs = min(common_length(known, text) for text in texts)
    if not rest[0].endswith(known[differs:]):
        return None
    begin = first + rest[0].removesuffix(known[differs:])
    found = [tokenizer(begin + text[differs:], add_special_tokens=False)["input_ids"] for text in texts]
    return [tail[1:] for tail in found] if all(tail[:1] == ids[:1] for tail in found) else None


@contextmanager
def naming(question: Question) -> Iterator[None]:
    """Name the question in the error of an example."""
    try:
        yield
    except EXAMPLE_ERRORS as error:
        raise ExampleError(f"question {question.id!r}: {error}") from error


@torch.no_grad()
def may_share(vlm: VLM, inputs: DecoderInputs, shared: int) -> bool:
    """Whether what follows the first `shared` tokens of a prompt may be decoded after them.

    inputs: of the whole prompt.

    No token may see what comes after the question's own tokens (PaliGemma's prompts see themselves both ways), and
    positions must go on by one. On an excerpt, logits after the prompt are compared with those after its first part as
    a prompt and the rest as generated text.
    """
    positions = inputs.positions[:, shared - 1 :]
    steps = torch.arange(positions.shape[1], device=positions.device)
    if not torch.equal(positions, positions[:, :1] + steps):
        return False
    text = torch.arange(max(shared - _TEXT_TOKENS, 0), len(inputs))
    excerpt = inputs.select(torch.cat([inputs.image_positions[:_IMAGE_TOKENS], text]).unique())

    def logits(row: DecoderInputs) -> Tensor:
        return logits_of(vlm, run_decoder(vlm, [row])[:, -1])[0]

    with vlm.evaluation_mode():
        return agree(logits(replace(excerpt, prompt_length=shared)), logits(excerpt))
