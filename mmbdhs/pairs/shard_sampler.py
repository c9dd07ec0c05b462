"""One shard after another: read, sampled, filtered and written."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmbdhs.data import Records, as_response, pair_faults
from mmbdhs.decoding import release
from mmbdhs.errors import ExampleError, TextOnlyError
from mmbdhs.pairs.config import DatasetConfig
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.shards import Dropped, shard_path, shard_row, shard_schema, storable_prompt, write_shard
from mmbdhs.sampling import BDHSConfig, BDHSFailure, BDHSSample, Sampler, Similarity
from mmbdhs.vlm import VLM, Processor, shared_processor

_LOG = logging.getLogger("mmbdhs")

Outcome = BDHSSample | Dropped
Notify = Callable[[Figures, int], None]
"""Is told the figures of a shard so far, and how many branches are decoding. The figures go back to none where the
shard begins again."""


class ShardSampler:
    """Samples shards of one data set with one model.

    A shard is decoded by itself, in the order of its examples, so that its bytes depend on nothing that was sampled
    before it or at the same time elsewhere.

    max_branches: how many continuations decode at a time; halves where memory does not suffice.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Processor,
        records: Records,
        folder: Path,
        config: BDHSConfig,
        similarity: Similarity,
        settings: DatasetConfig,
    ) -> None:
        self._model = model  # which its VLM does not keep
        self._vlm, self._processor = VLM.of(model), shared_processor(processor)
        self._vlm.require_whole_parameters()
        self._records, self._folder, self._similarity, self._settings = records, folder, similarity, settings
        self._config, self.max_branches = config, config.max_branches
        self._schema = shard_schema(records.columns)

    def sample(self, number: int, notify: Notify) -> Figures:
        """Sample a shard and write it. Returns its figures. Raises OSError where it cannot be written."""
        outcomes, figures = self._outcomes(self._examples(number), notify)
        dropped = [one for _, one in sorted(outcomes.items()) if isinstance(one, Dropped)]
        write_shard(shard_path(self._folder, number), self._schema, self._rows(outcomes), dropped, figures)
        return figures

    def _examples(self, number: int) -> range:
        begin = number * self._settings.shard_size
        count = min(self._settings.limit or len(self._records), len(self._records))
        return range(begin, min(begin + self._settings.shard_size, count))

    def _rows(self, outcomes: Mapping[int, Outcome]) -> Iterator[dict[str, Any]]:
        for index, sample in sorted(outcomes.items()):
            if isinstance(sample, BDHSSample):
                record, row = self._records[index], self._records.row(index)
                yield shard_row(record, row, sample, self._config.seed, self._settings.embed_images)

    def _outcomes(self, examples: range, notify: Notify) -> tuple[dict[int, Outcome], Figures]:
        """What becomes of each example. Where memory does not suffice, half as many branches start from the beginning.

        A response depends on its example's address alone, so the same samples come out.
        """
        while True:
            try:
                return self._decoded(examples, notify)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or self.max_branches == 1:
                    raise
                self.max_branches //= 2
                _LOG.warning("out of memory (%s): going on with max_branches=%d", error, self.max_branches)
            # Outside of the handler, so that the error no longer holds the frames and their tensors.
            release(self._vlm.model)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _decoded(self, examples: range, notify: Notify) -> tuple[dict[int, Outcome], Figures]:
        config = replace(self._config, max_branches=self.max_branches)
        sampler = Sampler(self._vlm, self._processor, config, self._similarity)
        figures, found = Figures(), dict[int, Outcome]()
        known: dict[int, str] = {}
        with (
            self._vlm.held_in_evaluation_mode(),
            closing(sampler.run(self._readable(examples, found, known))) as results,
        ):
            for index, result in results:
                chosen = known.pop(index)
                found[index] = outcome = self._judged(index, result, chosen)
                if isinstance(result, BDHSSample):
                    figures.add_response(result, config.similarity_threshold)
                if isinstance(outcome, BDHSSample):
                    figures.add_pair(chosen, outcome)
                notify(figures, sampler.live_branches)
        for outcome in found.values():
            if isinstance(outcome, Dropped):
                figures.add_dropped(outcome.kind)
        notify(figures, 0)
        return found, figures

    def _readable(
        self, examples: range, unreadable: dict[int, Outcome], known: dict[int, str]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (index, images, prompt, reference, key) of what can be read, and note each one's chosen response."""
        for index in examples:
            try:
                record = self._records[index]
                chosen = as_response(record["chosen"], "chosen")
                row = index, record["images"], storable_prompt(record), chosen, record.get("key")
            except ExampleError as error:
                kind = "text_only" if isinstance(error, TextOnlyError) else "failed"
                unreadable[index] = self._dropped(index, kind, error.reason)
            else:
                known[index] = str(chosen)
                yield row

    def _judged(self, index: int, result: BDHSSample | BDHSFailure, chosen: str) -> Outcome:
        """The sample, or why the example has no pair."""
        if isinstance(result, BDHSFailure):
            return self._dropped(index, "empty" if result.no_response else "failed", result.reason)
        if kind := _filter_of(chosen, result.rejected, self._settings):
            return replace(self._dropped(index, kind, _REASONS[kind]), rejected=result.rejected)
        return result

    def _dropped(self, index: int, kind: str, reason: str) -> Dropped:
        return Dropped(index, self._records.row(index), self._records.source_id(index), kind, reason)


_REASONS = {
    "identical": "the rejected response says what the chosen one says",
    "garbled": "a response is no language",
    "length_ratio": "one response has many more words than the other",
}


def _filter_of(chosen: str, rejected: str, settings: DatasetConfig) -> str | None:
    """The filter that leaves a pair out; None for a pair that stays."""
    faults = pair_faults((chosen, rejected))
    for name in ("identical", "garbled"):
        if name in faults and getattr(settings, f"drop_{name}"):
            return name
    shorter, longer = sorted((len(chosen.split()), len(rejected.split())))
    ratio = settings.max_length_ratio
    return "length_ratio" if ratio is not None and longer > ratio * shorter else None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; PyTorch has no class of its own for the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
