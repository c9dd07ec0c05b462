"""The prompts of several questions about one image: what they begin with, and whether that part may run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
    """The prompts of questions about one image, or None if they differ before its end.

    The processor runs over the longest prompt alone. It replaces the placeholder of an image by image tokens and
    leaves all other tokens as its tokenizer gives them, so the prompts end as their texts do.

    Raises ExampleError that names a question that cannot be asked.
    """
    with naming(questions[0]):
        images = load_images(str(questions[0].image))
    examples, ids = [], []
    for question in questions:
        with naming(question):
            examples.append(one := reader.read_prompt(0, images, question.text, question.id))
            text = render_prompt(processor, one.messages, one.template_arguments)
        ids.append(tokenizer_of(processor)(text)["input_ids"])
    longest = max(range(len(ids)), key=lambda number: len(ids[number]))
    common = min(common_length(ids[longest], other) for other in ids)
    with naming(questions[longest]):
        processed = reader.process_prompt(examples[longest])
    whole = processed.inputs["input_ids"][0].tolist()
    shared, tail = len(whole) - (len(ids[longest]) - common), ids[longest][common:]
    if whole[shared:] != tail or vlm.image_token_id in tail:
        return None
    return SharedPrompts(processed, shared, [one[common:] for one in ids])


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
