"""Data-parallel training: every process holds the whole model, or a shard of it (FSDP2).

A sharded decoder layer gathers its parameters whenever it runs, forward and backward. All processes take part in that
communication, so all of them must run the decoder equally often. Whatever one process does alone needs the full
parameters first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from mmbdhs.vlm import VLM

T = TypeVar("T")


class DistributedModel(Protocol):
    """A model whose parameters are replicated on all processes or sharded over them."""

    @property
    def model(self) -> Any: ...

    def run(self, function: Callable[[nn.Module], T]) -> T:
        """Return function(model), which may run the decoder once, with gradients where they are enabled."""

    def full_parameters(self) -> AbstractContextManager[None]:
        """A context in which this process may use the model on its own, for anything except training."""

    def common_pass_count(self, count: int) -> int:
        """The number of decoder passes that every process has to make if this one needs `count`."""

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients for this process's examples by gradients for the examples of all processes."""


@dataclass(frozen=True)
class ReplicatedModel:
    """The whole model on every process."""

    model: Any

    def run(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)

    def full_parameters(self) -> AbstractContextManager[None]:
        return nullcontext()

    def common_pass_count(self, count: int) -> int:
        return count

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        # Once per step. The hooks of DistributedDataParallel would need equally many backward passes on every process.
        if distributed.is_initialized():
            for work in [distributed.all_reduce(parameter.grad, async_op=True) for parameter in parameters]:
                work.wait()


class ShardedModel:
    """A model whose parameters, gradients and optimiser state are sharded over all processes of the default group.

    The model is changed in place and stays sharded. Its parameters must be equal on all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        layers = [m for m in VLM.of(model).decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
        parts: list[Any] = [fully_shard(layer) for layer in layers]
        self._root: Any = fully_shard(_Root(model))
        # By default a backward pass prefetches what ran before, also while one process alone was sampling.
        for part, before in pairwise((self._root, *reversed(parts), self._root)):
            part.set_modules_to_backward_prefetch([before])
        with torch.no_grad():
            self.run(lambda model: None)  # FSDP takes the first module that runs for the root

    def run(self, function: Callable[[nn.Module], T]) -> T:
        try:
            return self._root(function)
        finally:
            if not torch.is_grad_enabled():  # with gradients, the backward pass reshards
                self._root.reshard()

    @contextmanager
    def full_parameters(self) -> Iterator[None]:
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

    def common_pass_count(self, count: int) -> int:
        largest = torch.tensor(count, device=next(self.model.parameters()).device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= distributed.get_world_size()  # FSDP has averaged over the processes


class _Root(nn.Module):
    """FSDP's root module. It keeps the parameters outside of the decoder layers gathered from the start of the forward
    pass to the end of the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)


def gather_full(tree: Any) -> Any:
    """Replace every sharded tensor of a tree by the full one: on the CPU of rank 0, and by None on other ranks.

    All processes have to call this together. One tensor is gathered at a time. A tensor that occurs twice in the tree
    stays one tensor.
    """
    gathered: dict[int, Tensor | None] = {}

    def full(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        if id(leaf) not in gathered:
            tensor = leaf.full_tensor().detach()
            gathered[id(leaf)] = tensor.cpu() if distributed.get_rank() == 0 else None
        return gathered[id(leaf)]

    return tree_map(full, tree)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that all processes hold in full as `like` is sharded; return it unchanged if `like` is not.

    All processes have to call this together.
    """
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)
