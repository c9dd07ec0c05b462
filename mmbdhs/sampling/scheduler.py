"""The branches of many jobs, decoded together: a bounded number at a time, topped up as they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from mmbdhs.decoding import BranchPool, token_chooser
from mmbdhs.sampling.config import SamplingConfig
from mmbdhs.sampling.stopping import ResponseBranch, ResponseStops
from mmbdhs.vlm import VLM, DecoderInputs, Processor, end_token_ids, tokenizer_of

_PREFILL_TOKENS = 8192  # padded tokens of one prefill: bounds its memory whatever max_branches is

_STARTED_TOGETHER = 8  # jobs whose images may be encoded at once: bounds how many images wait


class Job(Protocol):
    """What continues one prompt.

    branch_count: by how many branches.
    """

    @property
    def branch_count(self) -> int: ...


J = TypeVar("J", bound=Job)
Started = tuple[DecoderInputs, Sequence[ResponseBranch]]


class Scheduler(Generic[J]):
    """Runs jobs, each of which continues one prompt by some branches."""

    def __init__(self, vlm: VLM, processor: Processor, config: SamplingConfig) -> None:
        tokenizer = tokenizer_of(processor)
        choose = token_chooser(vlm, tokenizer, config.temperature, config.top_k, config.top_p)
        stops = ResponseStops(tokenizer, end_token_ids(vlm, tokenizer))
        self._pool: BranchPool[ResponseBranch] = BranchPool(
            vlm, config.max_branches, choose, stops, config.usual_tokens
        )
        self._max_branches = config.max_branches
        self._jobs: dict[ResponseBranch, J] = {}  # of every branch in the pool
        self._running: dict[J, int] = {}  # how many branches of a job are in the pool

    def __len__(self) -> int:
        """The number of jobs with branches in the pool."""
        return len(self._running)

    @property
    def branch_count(self) -> int:
        """The number of branches in the pool."""
        return len(self._pool)

    def advance(
        self, next_job: Callable[[], J | None], start: Callable[[list[J]], list[Started | Exception]]
    ) -> list[tuple[J, Exception | None]]:
        """Start jobs as there is room, and run a step.

        next_job: () -> the next job, or None if there is none at the moment.
        start: (jobs) -> for each the prompt's inputs and its branches, or an error that ends this job alone.

        Returns the jobs that ended, with the error that ended them or None.
        """
        ended = self._refill(next_job, start)
        for branch in self._pool.step():
            ended += self._collect(branch)
        return ended

    def _refill(
        self, next_job: Callable[[], J | None], start: Callable[[list[J]], list[Started | Exception]]
    ) -> list[tuple[J, Exception | None]]:
        """Top up the pool once a good part of it is free, with several prompts in one prefill."""
        failed: list[tuple[J, Exception | None]] = []
        room = self._pool.room
        if len(self._pool) and room < math.ceil(self._max_branches / 4):
            return failed
        batch: list[tuple[DecoderInputs, list[ResponseBranch]]] = []
        while jobs := _that_fit(next_job, room):
            for job, started in zip(jobs, start(jobs), strict=True):
                if isinstance(started, Exception):
                    failed.append((job, started))
                    continue
                prompt, branches = started
                longest = max(len(prompt), *(len(other) for other, _ in batch), 0)
                if batch and (len(batch) + 1) * longest > _PREFILL_TOKENS:
                    self._pool.add(batch)
                    batch = []
                batch.append((prompt, list(branches)))
                self._jobs.update(dict.fromkeys(branches, job))
                self._running[job] = len(branches)
                room -= len(branches)
        if batch:
            self._pool.add(batch)
        return failed

    def _collect(self, branch: ResponseBranch) -> list[tuple[J, Exception | None]]:
        """Take in a branch that ended; returns its job if that was its last branch, or the branch failed."""
        if branch not in self._jobs:  # another branch of its job has failed
            return []
        job = self._jobs.pop(branch)
        self._running[job] -= 1
        if branch.error:
            others = [other for other, owner in self._jobs.items() if owner is job]
            self._pool.discard(others)
            for other in others:
                del self._jobs[other]
        elif self._running[job]:
            return []
        del self._running[job]
        return [(job, branch.error)]


def _that_fit(next_job: Callable[[], J | None], room: int) -> list[J]:
    """The next jobs for `room` more branches, of which the last may bring more."""
    jobs: list[J] = []
    while room > 0 and len(jobs) < _STARTED_TOGETHER and (job := next_job()) is not None:
        jobs.append(job)
        room -= job.branch_count
    return jobs
