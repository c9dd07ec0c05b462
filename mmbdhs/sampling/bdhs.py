"""Bias-Driven Hallucination Sampling, arXiv 2407.02477: the library's front door."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mmbdhs.decoding.branch_pool import NonFiniteError
from mmbdhs.decoding.token_sampling import token_chooser
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, Example, ExampleReader
from mmbdhs.sampling.image_corruption import noisy_images
from mmbdhs.sampling.results import BDHSConfig, BDHSFailure, BDHSSample, ExampleError, POVIDSample, check_on_error
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.sampling.similarity import resolve_similarity
from mmbdhs.vlm.chat_processor import Messages, decode_after, tokenizer_of
from mmbdhs.vlm.output_head import OutputHead
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.text_decoder import evaluating, runnable

_LOG = logging.getLogger("mmbdhs")


def bdhs_sample(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    prompts: Sequence[str | Messages],
    references: Sequence[str],
    config: BDHSConfig | None = None,
    similarity: Any = None,
    keys: Sequence[int | str] | None = None,
    progress: bool = False,
    on_error: str = "raise",
) -> list[BDHSSample | BDHSFailure]:
    """Sample a rejected response for each (image, prompt, reference) by Algorithm 1.

    model, processor: a VLM of `transformers` and its processor, which needs a chat template and a fast tokenizer.
    images: for each prompt a PIL image, a path or encoded bytes, or a list of these.
    prompts: strings, put into a user turn with the images first, or message lists.
    references: the chosen responses.
    similarity: a SentenceTransformer, its name, or a callable (list[str], list[str]) -> scores; None for the paper's
        all-mpnet-base-v2.
    keys: integers or strings under which the examples' random draws stand; None for a hash of their content, so that
        draws do not depend on the order of the examples.
    on_error: "raise" an ExampleError at the first bad example, or "skip" it: a BDHSFailure takes its place.

    Returns the samples in the order of the examples. Raises ValueError for lists of unequal length and
    UnsupportedModelError for a model in which hidden tokens cannot be left out exactly.
    """
    _check_lists(images=images, prompts=prompts, references=references, keys=keys)
    results: list[Any] = [None] * len(prompts)
    stream = iter_bdhs_samples(
        model, processor, images, prompts, references, config, similarity, keys, on_error=on_error
    )
    if progress:
        from tqdm.auto import tqdm

        stream = tqdm(stream, total=len(results), desc="BDHS", unit="pair")
    for index, result in stream:
        results[index] = result
    return results


def iter_bdhs_samples(
    model: nn.Module,
    processor: Any,
    images: Iterable[Any],
    prompts: Iterable[str | Messages],
    references: Iterable[str],
    config: BDHSConfig | None = None,
    similarity: Any = None,
    keys: Iterable[int | str] | None = None,
    on_error: str = "raise",
) -> Iterator[tuple[int, BDHSSample | BDHSFailure]]:
    """`bdhs_sample` for streams: takes iterables, yields (index, result) as results finish. Memory does not grow with
    the number of examples. The model is in evaluation mode until the generator ends or is closed."""
    check_on_error(on_error)
    model = runnable(model)
    sampler = Sampler(model, processor, config or BDHSConfig(), resolve_similarity(similarity))
    with evaluating(model):
        for index, result in sampler.run(_examples(images, prompts, references, keys)):
            yield index, _settled(result, on_error)


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
    _check_lists(images=images, prompts=prompts, references=references, keys=keys)
    check_on_error(on_error)
    model = runnable(model)
    config = BDHSConfig(noise_steps=noise_steps, seed=seed, temperature=0.0)
    reader = ExampleReader(model, processor)
    results: list[Any] = []
    with evaluating(model), torch.no_grad():
        for index, image, prompt, reference, key in _examples(images, prompts, references, keys):
            try:
                example = reader.read(index, image, prompt, reference, key)
                result: Any = _distort(model, tokenizer_of(processor), reader, example, config)
            except EXAMPLE_ERRORS as error:
                result = BDHSFailure(key, index, str(error))
            results.append(_settled(result, on_error))
    return results


def _distort(model: nn.Module, tokenizer: Any, reader: ExampleReader, example: Example, config: BDHSConfig) -> Any:
    noisy = noisy_images(example.images, config.noise_steps, config.seed, example.address, iteration=1)
    encoded = reader.encode(example, noisy)
    hidden = run_decoder(model, [encoded.inputs])[0, encoded.inputs.prompt_length - 1 : -1]
    ids = token_chooser(model, tokenizer, config)(OutputHead(model)(hidden), None).tolist()
    if min(ids) < 0:
        raise NonFiniteError("the model's logits are NaN or infinite")
    return POVIDSample(example.key, decode_after(tokenizer, encoded.prompt_tail, ids).strip(), tuple(ids))


def _examples(images: Iterable, prompts: Iterable, references: Iterable, keys: Iterable | None) -> Iterator[tuple]:
    triples = zip(images, prompts, references, strict=True)
    keyed = zip(triples, itertools.repeat(None)) if keys is None else zip(triples, keys, strict=True)
    return ((index, *triple, key) for index, (triple, key) in enumerate(keyed))


def _settled(result: Any, on_error: str) -> Any:
    if isinstance(result, BDHSFailure):
        if on_error == "raise":
            raise ExampleError(result)
        _LOG.warning("skipped example %d: %s", result.index, result.reason)
    return result


def _check_lists(**lists: Sequence | None) -> None:
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    strings = [name for name, values in lists.items() if isinstance(values, str)]
    if strings or len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(lengths)}: need lists of equal length, got {strings or lengths}")
