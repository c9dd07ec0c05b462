"""Several decoding steps at a time: one by one, or replayed from a CUDA graph."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from mmbdhs.decoding.engine import DecodingEngine
from mmbdhs.decoding.kv_cache import bucket

_LOG = logging.getLogger("mmbdhs")


class EagerSteps:
    """Runs steps one by one, over exactly the live branches and the stored keys."""

    per_check = 1  # steps between two looks of the host at what was generated

    def __init__(self, engine: DecodingEngine) -> None:
        self._engine = engine

    def rows(self, live: int) -> int:
        """How many slots to run for `live` branches."""
        return live

    def run(self, rows: int, count: int) -> Tensor:
        """Run `count` steps of the first `rows` slots; returns the chosen tokens, int64 [count, rows]."""
        prefix = self._engine.cache.offsets[-1]
        return torch.stack([self._engine.step(rows, prefix) for _ in range(count)])


class GraphSteps:
    """Replays captured steps. Row counts are rounded up and the whole prefix store is read, so that few graphs serve
    all. A model whose steps cannot be captured runs them eagerly."""

    per_check = 8

    def __init__(self, engine: DecodingEngine) -> None:
        self._engine, self._eager = engine, EagerSteps(engine)
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._extents: tuple[Any, ...] = ()
        self._memory: Any = None  # one pool for all graphs: results are read before the next replay
        self._capturable = True

    def rows(self, live: int) -> int:
        return bucket(live)

    def run(self, rows: int, count: int) -> Tensor:
        if self._extents != self._engine.extents:  # the graphs read and write tensors that have been replaced
            self._graphs.clear()
            self._extents, self._memory = self._engine.extents, torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._engine.device):
            if (rows, count) not in self._graphs and self._capturable:
                self._capture(rows, count)
            if not self._capturable:
                return self._eager.run(rows, count)
            graph, chosen = self._graphs[rows, count]
            graph.replay()
            return chosen

    def _capture(self, rows: int, count: int) -> None:
        prefix = self._engine.cache.extents.prefix  # all of it: what is in use changes from replay to replay
        self._warm_up(rows, prefix)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._memory):
                chosen = torch.stack([self._engine.step(rows, prefix) for _ in range(count)])
        except RuntimeError as error:
            self._capturable = False
            name = self._engine.vlm.name
            _LOG.warning("decoding runs without CUDA graphs: a step of %s cannot be captured (%s)", name, error)
        else:
            self._graphs[rows, count] = graph, chosen

    def _warm_up(self, rows: int, prefix: int) -> None:
        """Run a step without recording, on a side stream, so that libraries initialise and attention chooses its
        path; then undo it."""
        slots, stream = self._engine.slots, torch.cuda.Stream()
        before = slots.length.clone(), slots.tokens.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._engine.step(rows, prefix)
        torch.cuda.current_stream().wait_stream(stream)
        slots.length.copy_(before[0])
        slots.tokens.copy_(before[1])


def steps_for(engine: DecodingEngine) -> EagerSteps | GraphSteps:
    """Graphs on a CUDA device, eager steps elsewhere."""
    return GraphSteps(engine) if engine.device.type == "cuda" else EagerSteps(engine)
