"""CUDA graphs: work that a GPU is given once and repeats without the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbdhs.vlm import VLM

_WAITED = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Graph:
    """Captured work and its result, which every replay writes to the same place."""

    graph: torch.cuda.CUDAGraph
    result: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.result


class GraphRecorder:
    """Captures work on one device. Its graphs share their memory: a result holds until another of them is replayed.

    Work is captured and rehearsed on the same stream, which belongs to the device by name. The stream that
    torch.cuda.graph takes by default belongs to whichever device captured first in the process, and a graph of another
    device's work stays empty there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Let go of the memory of the graphs captured so far, once they are gone."""
        self._memory = torch.cuda.graph_pool_handle()

    def rehearse(self, work: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Do the work once, so that libraries are ready for the stream. Returns its result and whether the host waited
        for the device meanwhile: such work cannot be captured."""
        with torch.cuda.device(self._device), _noting_waits() as waits:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                result = work()
            current.wait_stream(self._stream)
        return result, bool(waits)

    def record(self, work: Callable[[], Tensor]) -> Graph:
        """Capture the work, without doing it. Raises RuntimeError for work that cannot be captured; the current stream
        and the memory allocator are then as they were before."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would leave its stream current after a failure, and give all cached memory back to the
        # driver each time. Other threads may go on using the device.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                try:
                    result = work()
                finally:
                    graph.capture_end()
            except BaseException:
                self._end_allocating()
                raise
        return Graph(graph, result)

    def _end_allocating(self) -> None:
        """Undo what a capture that fails leaves undone in torch before 2.12: new tensors went to its memory."""
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        with suppress(RuntimeError):  # it was undone
            if end is not None:
                end(self._device.index or 0, self._memory)


def as_graph(work: Callable[[], Any], device: torch.device) -> Graph:
    """The work as a graph of its own, done once. Raises RuntimeError for work that cannot be captured."""
    recorder = GraphRecorder(device)
    recorder.rehearse(work)
    return recorder.record(work)


def obstacle_to_graphs(vlm: VLM) -> str:
    """Why a model's work cannot be captured, as far as it shows beforehand; empty if nothing speaks against it."""
    devices = sorted({str(parameter.device) for parameter in vlm.model.parameters()})
    if len(devices) > 1:
        return f"its parameters are on {', '.join(devices)}"
    if any(hasattr(module, "_hf_hook") for module in vlm.model.modules()):
        return "hooks of Accelerate move its weights or inputs"
    return ""


@contextmanager
def _noting_waits() -> Iterator[list[str]]:
    """Gives a list, which holds at the end a message for each time that the host waited for a device."""
    mode, waits = torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            waits += [str(warning.message) for warning in caught if _WAITED in str(warning.message)]
    for warning in caught:
        if str(warning.message) not in waits and "prototype feature" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
