"""POVID-style image distortion (section 3.3): another way to a rejected response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmbdhs.checks import check_on_error, equal_lengths
from mmbdhs.data import Messages
from mmbdhs.decoding import token_chooser
from mmbdhs.errors import NonFiniteError
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, Example, ExampleReader, numbered_examples
from mmbdhs.sampling.image_corruption import noisy_images
from mmbdhs.sampling.results import BDHSFailure, POVIDSample, settled
from mmbdhs.vlm import OutputHead, decode_after, evaluating, run_decoder, runnable, tokenizer_of


def povid_sample(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    prompts: Sequence[str | Messages],
    references: Sequence[str],
    noise_steps: int = 500,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    on_error: str = "raise",
) -> list[POVIDSample | BDHSFailure]:
    """POVID-style image distortion (section 3.3): predict every token of each reference from the tokens before it and
    an image diffused by `noise_steps` steps of Eq. 8, in one forward. The other arguments are those of `bdhs_sample`.
    """
    equal_lengths(images=images, prompts=prompts, references=references, keys=keys)
    check_on_error(on_error)
    model = runnable(model)
    config = BDHSConfig(noise_steps=noise_steps, seed=seed, temperature=0.0)
    reader = ExampleReader(model, processor)
    results: list[Any] = []
    with evaluating(model), torch.no_grad():
        for index, image, prompt, reference, key in numbered_examples(images, prompts, references, keys):
            try:
                example = reader.read(index, image, prompt, reference, key)
                result: Any = _distort(model, tokenizer_of(processor), reader, example, config)
            except EXAMPLE_ERRORS as error:
                result = BDHSFailure(key, index, str(error))
            results.append(settled(result, on_error))
    return results


def _distort(model: nn.Module, tokenizer: Any, reader: ExampleReader, example: Example, config: BDHSConfig) -> Any:
    noisy = noisy_images(example.images, config.noise_steps, config.seed, example.address, iteration=1)
    encoded = reader.encode(example, noisy)
    hidden = run_decoder(model, [encoded.inputs])[0, encoded.inputs.prompt_length - 1 : -1]
    ids = token_chooser(model, tokenizer, temperature=0.0)(OutputHead(model)(hidden), None).tolist()
    if min(ids) < 0:
        raise NonFiniteError("the model's logits are NaN or infinite")
    return POVIDSample(example.key, decode_after(tokenizer, encoded.prompt_tail, ids).strip(), tuple(ids))
