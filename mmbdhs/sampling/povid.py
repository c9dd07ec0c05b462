"""POVID-style image distortion (section 3.3): a teacher-forced way to a rejected response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mmbdhs.checks import check_on_error, equal_lengths, given
from mmbdhs.data import Images, Prompt
from mmbdhs.decoding import token_chooser
from mmbdhs.errors import ExampleError, NonFiniteError
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import (
    EXAMPLE_ERRORS,
    EncodedExample,
    Example,
    ExampleReader,
    ProcessedExample,
    attempt,
    numbered,
)
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.sampling.results import BDHSFailure, POVIDSample, checked_result
from mmbdhs.vlm import VLM, Processor, decode_after, logits_of, run_decoder, shared_processor, tokenizer_of


def povid_sample(
    model: nn.Module,
    processor: Processor,
    images: Sequence[Images],
    prompts: Sequence[Prompt],
    references: Sequence[str],
    noise_steps: int = 500,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    on_error: str = "raise",
    num_workers: int | None = None,
    noise_range: str = "clip",
) -> list[POVIDSample | BDHSFailure]:
    """Predict every token of each reference from the tokens before it and a diffused image, in one forward.

    noise_steps: how many steps of Eq. 8 diffuse the image.
    seed: of the noise.
    num_workers: as in `SamplingConfig`.
    noise_range: as in `BDHSConfig`.

    The other arguments, and the errors, are those of `bdhs_sample`.
    """
    equal_lengths(images=images, prompts=prompts, references=references, **given(keys=keys))
    check_on_error(on_error)
    config = BDHSConfig(
        noise_steps=noise_steps, noise_range=noise_range, seed=seed, temperature=0.0, num_workers=num_workers
    )
    vlm, processor = VLM.of(model), shared_processor(processor)
    vlm.require_whole_parameters()
    reader = ExampleReader(vlm, processor)
    rows = numbered(images, prompts, references, keys=keys)
    results: list[POVIDSample | BDHSFailure] = []
    with vlm.evaluation_mode(), torch.no_grad(), ReaderPool(num_workers, vlm.device) as readers:
        for found in readers.map(partial(_read, reader, config), rows):
            result = found if isinstance(found, BDHSFailure) else _distort(vlm, tokenizer_of(processor), reader, *found)
            results.append(checked_result(result, on_error))
    return results


def _read(
    reader: ExampleReader, config: BDHSConfig, row: tuple[Any, ...]
) -> tuple[Example, ProcessedExample] | BDHSFailure:
    """An example with noise on its images, or its failure. Runs in the readers' threads."""
    index, images, prompt, reference, key = row
    try:
        example = reader.read(index, images, prompt, reference, key)
        return example, reader.process(example, config.noise(example.address, iteration=1))
    except EXAMPLE_ERRORS as error:
        return BDHSFailure(key, index, str(error))


def _distort(
    vlm: VLM, tokenizer: Any, reader: ExampleReader, example: Example, inputs: ProcessedExample
) -> POVIDSample | BDHSFailure:
    (encoded,) = reader.encode([inputs])
    predicted = encoded if isinstance(encoded, Exception) else attempt(_predicted, vlm, tokenizer, encoded)
    if isinstance(predicted, Exception):
        return BDHSFailure(example.key, example.index, str(predicted))
    ids, rejected = predicted
    try:
        reader.rule.require_response("the model's response", rejected)
    except ExampleError as error:
        return BDHSFailure(example.key, example.index, str(error), no_response=True)
    return POVIDSample(example.key, rejected, tuple(ids))


def _predicted(vlm: VLM, tokenizer: Any, encoded: EncodedExample) -> tuple[list[int], str]:
    """The arg-max after each number of the reference's tokens, and its text."""
    hidden = run_decoder(vlm, [encoded.inputs])[0, encoded.inputs.prompt_length - 1 : -1]
    ids = token_chooser(vlm, tokenizer, temperature=0.0)(logits_of(vlm, hidden), None).tolist()
    if min(ids) < 0:
        raise NonFiniteError("the model's logits are NaN or infinite")
    return ids, decode_after(tokenizer, encoded.prompt_tail, ids).strip()
