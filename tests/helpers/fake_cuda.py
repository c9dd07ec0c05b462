"""CUDA's streams and graphs, pretended on the CPU: what is captured is noted, and a replay runs it once more."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mmbdhs.decoding import kept
from mmbdhs.decoding.engine import DecodingEngine

STEP = DecodingEngine.step
WAITING = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero")


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = None if device is None else torch.device(device)

    def wait_stream(self, other: Stream) -> None:
        pass


class FakeCuda:
    """Takes the place of the functions of torch.cuda that decoding uses.

    memory: the bytes that are said to be free.
    fails: whether captures fail at their end.
    captures: the stream and the error mode of every capture.
    rows: of every step that was run, whether eagerly or as a replay.
    replays: how many of them were replays.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: int = 1 << 40) -> None:
        self.memory, self.fails = memory, False
        self.streams: list[Stream] = [Stream()]
        self.captures: list[tuple[Stream, str]] = []
        self.rows: list[int] = []
        self.replays = 0
        self.open: FakeGraph | None = None
        self.mode = 0
        fakes = {
            "Stream": Stream,
            "stream": self.stream,
            "device": self.device,
            "current_stream": lambda: self.streams[-1],
            "CUDAGraph": lambda: FakeGraph(self),
            "graph_pool_handle": object,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "mem_get_info": lambda device: (self.memory, self.memory),
            "memory_reserved": lambda device: 0,
            "memory_allocated": lambda device: 0,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(kept, "takes_graphs", lambda device: True)
        monkeypatch.setattr(DecodingEngine, "step", lambda *arguments: self.step(*arguments))
        self.monkeypatch = monkeypatch

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        with self.stream(Stream(device)):  # the device's own
            yield

    def set_mode(self, mode: int | str) -> None:
        self.mode = {"warn": 1}.get(mode, mode)

    def step(self, engine: DecodingEngine, rows: int, prefix: int) -> torch.Tensor:
        """Run a step, or note it for the open capture and undo it."""
        if self.open is None:
            self.rows.append(rows)
            with self.noting_waits():
                return STEP(engine, rows, prefix)
        self.open.work.append((engine, rows, prefix))
        before = engine.slots.length.clone(), engine.slots.tokens.clone()
        self.open.result = STEP(engine, rows, prefix)
        engine.slots.length.copy_(before[0])
        engine.slots.tokens.copy_(before[1])
        return self.open.result

    @contextmanager
    def noting_waits(self) -> Iterator[None]:
        with self.monkeypatch.context() as patch:
            for name in WAITING if self.mode else ():
                patch.setattr(torch.Tensor, name, _warning(getattr(torch.Tensor, name)))
            yield


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.work: list[tuple[DecodingEngine, int, int]] = []
        self.result = torch.empty(0)

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self.cuda.captures.append((self.cuda.streams[-1], capture_error_mode))
        self.cuda.open = self

    def capture_end(self) -> None:
        self.cuda.open = None
        if self.cuda.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured = self.addresses()

    def addresses(self) -> list[int]:
        tensors = []
        for engine, _, _ in self.work:
            tensors += [store.sequence for layer in engine.cache.layers for store in layer.stores]
            tensors += [*engine.slots.columns().values(), engine.cache.prefix_offsets, engine.cache.prefix_index]
        return [tensor.data_ptr() for tensor in tensors]

    def replay(self) -> None:
        assert self.addresses() == self.captured, "a tensor of the captured steps was replaced"
        self.cuda.replays += 1
        for engine, rows, prefix in self.work:
            self.cuda.rows.append(rows)
            self.result.copy_(STEP(engine, rows, prefix))


def _warning(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return function(*arguments)

    return run
