"""Bias-Driven Hallucination Sampling (arXiv 2407.02477), Algorithm 1: the library's front door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from torch import nn

from mmbdhs.checks import check_on_error, each_of, equal_lengths, given, instance
from mmbdhs.data import Images, Prompt
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import numbered
from mmbdhs.sampling.responses import in_order
from mmbdhs.sampling.results import BDHSFailure, BDHSSample, checked_result
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.sampling.similarity import SimilarityModel, resolve_similarity
from mmbdhs.vlm import VLM, Processor, shared_processor


def bdhs_sample(
    model: nn.Module,
    processor: Processor,
    images: Sequence[Images],
    prompts: Sequence[Prompt],
    references: Sequence[str],
    config: BDHSConfig | None = None,
    similarity: SimilarityModel = None,
    keys: Sequence[int | str] | None = None,
    progress: bool = False,
    on_error: str = "raise",
) -> list[BDHSSample | BDHSFailure]:
    """Sample a rejected response for each (image, prompt, reference) by Algorithm 1.

    model: a VLM of `transformers`.
    processor: its processor, which needs a chat template and a fast tokenizer.
    images: for each prompt a PIL image, a path or encoded bytes, or a list of these.
    prompts: strings, put into a user turn with the images first, message lists, or ChatPrompts (with tools and
        chat_template_kwargs).
    references: the chosen responses.
    config: settings of Algorithm 1; None for the paper's.
    similarity: a SentenceTransformer, its name, or a callable (list[str], list[str]) -> scores; None for the paper's
        all-mpnet-base-v2.
    keys: integers or strings that address the examples' random draws; None for a hash of their content, so that draws
        do not depend on the order of the examples.
    progress: whether to show a progress bar.
    on_error: "raise" an ExampleError at the first bad example, or "skip" it: a BDHSFailure takes its place.

    Returns the samples in the order of the examples. Raises ValueError for lists of unequal length and
    UnsupportedModelError for a model in which hidden tokens cannot be left out exactly.
    """
    equal_lengths(images=images, prompts=prompts, references=references, **given(keys=keys))
    arguments = images, prompts, references, config, similarity, keys, on_error
    return in_order(iter_bdhs_samples(model, processor, *arguments), len(prompts), "pair" if progress else None)


def iter_bdhs_samples(
    model: nn.Module,
    processor: Processor,
    images: Iterable[Images],
    prompts: Iterable[Prompt],
    references: Iterable[str],
    config: BDHSConfig | None = None,
    similarity: SimilarityModel = None,
    keys: Iterable[int | str] | None = None,
    on_error: str = "raise",
) -> Iterator[tuple[int, BDHSSample | BDHSFailure]]:
    """`bdhs_sample` for streams: takes iterables and yields (index, result) as results finish.

    Memory does not grow with the number of examples. The iterables are taken from in the caller's thread: whenever the
    model has room for an example, and then up to twice `config.num_workers` ahead. The model is in evaluation
    mode, and the threads that read are alive, until the generator ends or is closed. All samples that are finished are
    yielded before an error is raised, whether it comes from an example, an iterable, a thread or Ctrl-C.
    """
    check_on_error(on_error)
    each_of(images=images, prompts=prompts, references=references, **given(keys=keys))
    config = BDHSConfig() if config is None else config
    instance("config", config, BDHSConfig)
    vlm = VLM.of(model)
    vlm.require_whole_parameters()
    sampler = Sampler(vlm, shared_processor(processor), config, resolve_similarity(similarity))
    rows = numbered(images, prompts, references, keys=keys)
    with vlm.held_in_evaluation_mode(), closing(sampler.run(rows)) as results:
        for index, result in results:
            if isinstance(result, BDHSFailure) and on_error == "raise":
                yield from sampler.finished()
            yield index, checked_result(result, on_error)
