"""Which ρ_th, ε_s and similarity model suit the user's data: each is tried on a small sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import nn

from mmbdhs.checks import instance, integer, number_in
from mmbdhs.data import ChatPrompt, Messages, Records, as_chat, as_response, message_text, open_records
from mmbdhs.errors import ExampleError
from mmbdhs.pairs.tune_report import Candidate, Question, TuneReport
from mmbdhs.sampling import (
    DEFAULT_MODEL,
    BDHSConfig,
    BDHSSample,
    Sampler,
    Similarity,
    SimilarityModel,
    resolve_similarity,
    scores,
)
from mmbdhs.vlm import VLM, Processor, shared_processor

_LOG = logging.getLogger("mmbdhs")

MASK_THRESHOLDS = (0.9, 0.95, 0.99, 1.0)
SIMILARITY_THRESHOLDS = (0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def tune(
    model: nn.Module,
    processor: Processor,
    data: Any,
    config: BDHSConfig | None = None,
    *,
    mask_thresholds: Sequence[float] = MASK_THRESHOLDS,
    similarity_thresholds: Sequence[float] = SIMILARITY_THRESHOLDS,
    similarities: Mapping[str, SimilarityModel] | None = None,
    rows: int | None = 50,
    progress: bool = True,
) -> TuneReport:
    """Try settings of Algorithm 1 on a sample of a data set, and recommend some (`TuneReport.recommendation`).

    For each ρ_th every record goes through all iterations once. A draw depends on its address alone, so iteration k
    brings the response that it brings in any run with that ρ_th, and each ε_s and similarity model is read off these
    responses without further sampling.

    model, processor: a VLM of `transformers` and its processor.
    data: as in `sample_dataset`, or `Records`.
    config: the settings of Algorithm 1; None for the paper's. The recommendation keeps to its mask_threshold and
        similarity_threshold unless the sample speaks against them.
    mask_thresholds: the ρ_th to try.
    similarity_thresholds: the ε_s to try.
    similarities: the similarity models to try, each as in `bdhs_sample`, by the name that the report gives it; None for
        the paper's all-mpnet-base-v2.
    rows: how many records are sampled, evenly spaced in the data; None for all.
    progress: whether to show a progress bar.

    Records that cannot be used are left out, and the log names them. Raises ValueError if none can be used, for an
    empty list of settings, and for a config with noise, which hides no image tokens.
    """
    config = BDHSConfig() if config is None else config
    models = {DEFAULT_MODEL: None} if similarities is None else similarities
    check_settings(config, mask_thresholds, similarity_thresholds, list(models), rows)
    masks, thresholds = (sorted({*map(float, values)}) for values in (mask_thresholds, similarity_thresholds))
    scored = {name: resolve_similarity(one) for name, one in models.items()}
    records = data if isinstance(data, Records) else open_records(data)
    examples = _examples(records, min(rows or len(records), len(records)))
    with _bar(len(masks) * len(examples) * config.max_iterations, progress) as bar:
        drawn = _drawn(VLM.of(model), shared_processor(processor), examples, config, masks, bar.update)
    if not drawn:
        raise ValueError(f"data: needs records that can be sampled, none of the {len(examples)} tried can be")
    used = {record for record, _, _ in drawn}
    questions = {one.record: Question(_asked(one.prompt), one.chosen) for one in examples if one.record in used}
    return TuneReport(questions, _candidates(drawn, questions, scored), thresholds, config)


def check_settings(
    config: BDHSConfig,
    mask_thresholds: Sequence[float],
    similarity_thresholds: Sequence[float],
    similarities: Sequence[str],
    rows: int | None,
) -> None:
    """Raise ValueError or TypeError for arguments that `tune` does not take. similarities: the names of the models."""
    instance("config", config, BDHSConfig)
    if config.noise_steps:
        raise ValueError(f"config: needs noise_steps=0, because noise hides no image tokens, got {config.noise_steps}")
    tried = {"mask_thresholds": mask_thresholds, "similarity_thresholds": similarity_thresholds}
    for name, values in (tried | {"similarities": similarities}).items():
        if not values:
            raise ValueError(f"{name}: needs at least one to try, got none")
    for name, values in tried.items():
        for value in values:
            number_in(name, value, 0, 1)
    if rows is not None:
        integer("rows", rows, 1)


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="sampling", unit="response", disable=not shown)


class _Example(NamedTuple):
    """A row as `Sampler.run` takes it.

    record: the number of the record.
    """

    record: int
    images: Any
    prompt: ChatPrompt
    chosen: str
    key: int | str | None


def _examples(records: Records, count: int) -> list[_Example]:
    """Evenly spaced records, without those that cannot be read."""
    found = []
    for number in (step * len(records) // count for step in range(count)):
        try:
            record = records[number]
            prompt = as_chat(ChatPrompt.of_record(record), len(record["images"]), "prompt")
            chosen = as_response(record["chosen"], "chosen")
        except ExampleError as error:
            _LOG.warning("left out record %d: %s", number, error.reason)
        else:
            found.append(_Example(number, record["images"], prompt, str(chosen), record.get("key")))
    return found


def _asked(prompt: ChatPrompt) -> str:
    """The text of the last message."""
    return message_text(cast("Messages", prompt.messages)[-1]).strip()


Drawn = tuple[int, float, BDHSSample]
"""The number of a record, ρ_th, and the sample of one iteration."""


def _drawn(
    vlm: VLM,
    processor: Processor,
    examples: Sequence[_Example],
    config: BDHSConfig,
    masks: Sequence[float],
    notify: Callable[[], Any],
) -> list[Drawn]:
    """The samples of every iteration of each example under each ρ_th, without those of examples that fail.

    notify: is called for each sample.
    """
    vlm.require_whole_parameters()
    drawn: list[Drawn] = []
    failed: set[int] = set()
    for mask in masks:
        sampler = Sampler(vlm, processor, replace(config, mask_threshold=mask), _all_alike, yield_similar=True)
        rows = [one for one in examples if one.record not in failed]
        with vlm.held_in_evaluation_mode(), closing(sampler.run(rows)) as results:
            for number, result in results:
                notify()
                if isinstance(result, BDHSSample):
                    drawn.append((number, mask, result))
                elif not result.no_response:
                    _LOG.warning("left out record %d: %s", number, result.reason)
                    failed.add(number)
    return sorted((one for one in drawn if one[0] not in failed), key=lambda one: (*one[:2], one[2].iterations))


def _all_alike(responses: list[str], _: list[str]) -> list[float]:
    """A similarity that accepts no response, so that every iteration runs."""
    return [1.0] * len(responses)


def _candidates(
    drawn: Sequence[Drawn], questions: Mapping[int, Question], similarities: Mapping[str, Similarity]
) -> list[Candidate]:
    """The samples with their similarity to the reference by each model."""
    texts = [sample.rejected for _, _, sample in drawn], [questions[record].chosen for record, _, _ in drawn]
    columns = [scores(similarity, *texts) for similarity in similarities.values()]
    return [
        Candidate(record, mask, one.iterations, one.guided, one.rejected, dict(zip(similarities, row, strict=True)))
        for (record, mask, one), row in zip(drawn, zip(*columns, strict=True), strict=True)
    ]
