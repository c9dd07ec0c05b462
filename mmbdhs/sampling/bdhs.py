"""Bias-Driven Hallucination Sampling, arXiv 2407.02477: the library's front door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from mmbdhs.checks import check_on_error, equal_lengths
from mmbdhs.data import Messages
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import numbered_examples
from mmbdhs.sampling.results import BDHSFailure, BDHSSample, settled
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.sampling.similarity import resolve_similarity
from mmbdhs.vlm import evaluating, runnable


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
    equal_lengths(images=images, prompts=prompts, references=references, keys=keys)
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
        for index, result in sampler.run(numbered_examples(images, prompts, references, keys)):
            yield index, settled(result, on_error)
