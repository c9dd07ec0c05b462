"""Where a model's parameters lie while it is trained: whole on every process, or spread over all of them (FSDP2).

A sharded decoder layer gathers its parameters when it runs, forward and backward. All processes have to take part in
that, so all must run the decoder equally often, and what one of them does alone needs the parameters gathered before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from mmbdhs.vlm import VLM

T = TypeVar("T")


class Placement(Protocol):
    """A model, and how it is to be used where its parameters lie.

    run: function(model), in which the decoder may run once, with gradients if they are on.
    gathered: a context in which a process may do with the model what it likes, but for training.
    passes: how often all processes have to run the decoder if this one needs `count` times.
    sum_gradients: from the gradients of each process's own examples to those of all.
    """

    model: nn.Module

    def run(self, function: Callable[[nn.Module], T]) -> T: ...

    def gathered(self) -> AbstractContextManager: ...

    def passes(self, count: int) -> int: ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None: ...


@dataclass(frozen=True)
class Replicated:
    """The whole model on every process."""

    model: nn.Module

    def run(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)

    def gathered(self) -> AbstractContextManager:
        return nullcontext()

    def passes(self, count: int) -> int:
        return count

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Once a step, not by DistributedDataParallel's hooks, which want as many backward passes on every process."""
        if distributed.is_initialized():
            for work in [distributed.all_reduce(parameter.grad, async_op=True) for parameter in parameters]:
                work.wait()


class Sharded:
    """Parameters, gradients and so the optimiser's state spread over all processes of the default group.

    The model is changed in place and stays sharded. Its parameters must be equal on all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        for layer in VLM.of(model).decoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer)
        self._root = fully_shard(_Root(model))
        with torch.no_grad():
            self.run(lambda model: None)  # FSDP takes for the root what runs first

    def run(self, function: Callable[[nn.Module], T]) -> T:
        try:
            return self._root(function)
        finally:
            if not torch.is_grad_enabled():  # with gradients, backward does it
                self._root.reshard()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        parts = [module for module in self._root.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(part is not self._root, recurse=False)
                part.reshard()

    def passes(self, count: int) -> int:
        most = torch.tensor(count, device=next(self.model.parameters()).device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return int(most)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad *= distributed.get_world_size()  # of means over the processes


class _Root(nn.Module):
    """Holds what lies outside of the decoder's layers, from the forward's begin to the backward's end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)


def collected(tree: Any) -> Any:
    """With whole tensors for sharded ones, on the CPU of the first process and None elsewhere. All have to ask for it;
    one tensor is gathered at a time, and one that is there twice comes out as one."""
    found: dict[int, Tensor | None] = {}

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        if id(leaf) not in found:
            tensor = leaf.full_tensor().detach()
            found[id(leaf)] = tensor.cpu() if distributed.get_rank() == 0 else None
        return found[id(leaf)]

    return tree_map(whole, tree)


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have, in parts as `like` is if that is sharded; all have to ask for it."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
