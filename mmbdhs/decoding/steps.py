"""One step after another: run as they come, or replayed from CUDA graphs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmbdhs.decoding.branch import Branch
from mmbdhs.decoding.cuda_graphs import Graph, GraphRecorder, obstacle_to_graphs
from mmbdhs.decoding.engine import DecodingEngine
from mmbdhs.decoding.kv_cache import Extents, bucket
from mmbdhs.vlm import DecoderInputs

_LOG = logging.getLogger("mmbdhs")
# A capture costs about as much as it saves in a dozen steps, so a shape has to come up often enough.
_USES_BEFORE_CAPTURE = 8
_SHARE = 4  # a quarter of the free memory may be reserved
_MARGIN = 16  # places for tokens of the prompt that a branch has to itself


class EagerSteps:
    """Runs steps over exactly the live branches and the stored keys."""

    def __init__(self, engine: DecodingEngine) -> None:
        self.engine = engine

    def expect(self, prompts: Sequence[DecoderInputs]) -> None:
        """Take note of the first prompts, before they are stored."""

    def run(self, live: Sequence[Branch]) -> Tensor:
        """Run a step of the branches in the first slots; returns the chosen tokens, int64 [n]."""
        cache = self.engine.cache
        cache.reserve(Extents(len(live), _stored_next(live), cache.extents.prefix))
        return self.engine.step(len(live), cache.offsets[-1])


class GraphSteps:
    """Replays captured steps. A graph serves all numbers of branches up to its own, and reads its tensors where they
    were; so room is reserved beforehand, and a shape is captured once it has come up often. All else runs eagerly.

    max_branches: how many branches decode at a time.
    usual_tokens: the most tokens that a branch usually adds.
    """

    def __init__(self, engine: DecodingEngine, max_branches: int, usual_tokens: int) -> None:
        self.engine = engine
        self._slots, self._places = bucket(max_branches), _rounded(usual_tokens + _MARGIN)
        engine.slots.reserve(self._slots, self._places)
        self._recorder = GraphRecorder(engine.device)
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._uses: Counter[tuple[int, int]] = Counter()
        self._extents: tuple[Any, ...] = ()
        self._capturable = True
        if obstacle := obstacle_to_graphs(engine.vlm):
            self._give_up(obstacle)

    def expect(self, prompts: Sequence[DecoderInputs]) -> None:
        """Take note of the first prompts, before they are stored: as many as there are slots may be of their length."""
        cache, length = self.engine.cache, max(map(len, prompts))
        if not cache.layers:
            wanted = Extents(self._slots, self._places, bucket(self._slots * length))
            cache.plan = partial(self._affordable, wanted)

    def run(self, live: Sequence[Branch]) -> Tensor:
        """Run a step of the branches in the first slots; returns the chosen tokens, int64 [n]. They hold until the
        next step."""
        self._reserve(live)
        if self._extents != self.engine.extents:  # the graphs read and write tensors that have been replaced
            self._graphs.clear()
            self._recorder.forget()
            self._extents = self.engine.extents
        shape = bucket(len(live)), self._prefix()
        if shape in self._graphs:
            with torch.cuda.device(self.engine.device):
                return self._graphs[shape].replay()[: len(live)]
        self._uses[shape] += 1
        if self._capturable and self._uses[shape] >= _USES_BEFORE_CAPTURE:
            return self._capture(shape)[: len(live)]
        return self.engine.step(len(live), self.engine.cache.offsets[-1])

    def _capture(self, shape: tuple[int, int]) -> Tensor:
        """Run a step of this shape, and capture it for the next time."""
        chosen, waited = self._recorder.rehearse(lambda: self.engine.step(*shape))
        if waited:
            self._give_up("it makes the host wait for the device")
            return chosen
        try:
            self._graphs[shape] = self._recorder.record(lambda: self.engine.step(*shape))
        except RuntimeError as error:
            self._give_up(str(error))
        return chosen

    def _give_up(self, reason: str) -> None:
        self._capturable = False
        name = self.engine.vlm.name
        _LOG.warning("decoding runs without CUDA graphs: a step of %s cannot be captured (%s)", name, reason)

    def _prefix(self) -> int:
        """How much of the prefix stores a graph reads. The op reads no more than the branches see; SDPA reads all that
        it is given, and so gets the least power of two that holds the prompts."""
        used, whole = self.engine.cache.offsets[-1], self.engine.cache.extents.prefix
        return whole if self.engine.attention.is_native else min(whole, 1 << (used - 1).bit_length())

    def _reserve(self, live: Sequence[Branch]) -> None:
        """Where the reserved places do not suffice, add those that the branches may come to need."""
        cache, needed = self.engine.cache, _stored_next(live)
        if needed <= cache.extents.suffix and len(live) <= cache.extents.slots:
            return
        most = _rounded(max(branch.most_stored for branch in live))
        wanted = self._affordable(Extents(self._slots, most, cache.extents.prefix), cache.token_bytes)
        cache.reserve(Extents(len(live), needed, cache.extents.prefix))
        cache.resize(Extents(*map(max, cache.extents, wanted)))

    def _affordable(self, wanted: Extents, token_bytes: int) -> Extents:
        """What of `wanted` fits into the memory that may be reserved. Says what is reserved."""

        def size(extents: Extents) -> int:
            return token_bytes * (extents.slots * extents.suffix + extents.prefix)

        device, extents = self.engine.device, wanted
        limit = (_free_memory(device) + size(self.engine.cache.extents)) // _SHARE
        while size(extents) > limit and extents.suffix + extents.prefix:
            extents = Extents(extents.slots, extents.suffix // 2, extents.prefix // 2)
        lacks = "" if extents == wanted else f", less than the {wanted} that would spare it from growing"
        level = logging.WARNING if lacks else logging.INFO
        _LOG.log(level, "decoding reserves %.1f GiB on %s: %s%s", size(extents) / 2**30, device, extents, lacks)
        return extents


def _stored_next(live: Sequence[Branch]) -> int:
    """The most keys of its own that a branch has in the cache after the next step."""
    return max(branch.stored for branch in live) + 1


def _rounded(places: int) -> int:
    return -(-places // _MARGIN) * _MARGIN


def _free_memory(device: torch.device) -> int:
    """Bytes that could still be allocated on a GPU."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
