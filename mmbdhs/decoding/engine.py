"""One token more for every slot: the state of decoding on the model's device, and the step that advances it.

A step waits for nothing and decides nothing on the host, so steps can be captured in a CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from mmbdhs.decoding.attention import DecodeAttention
from mmbdhs.decoding.attention_paths import Rows
from mmbdhs.decoding.kv_cache import KeyStores, bucket, enlarged
from mmbdhs.vlm import DecoderInputs, OutputHead, input_device, run_decoder, step_logits

_LOG = logging.getLogger("mmbdhs")

Chooser = Callable[[Tensor, Tensor | None], Tensor]


@dataclass
class Slots:
    """What the slots hold, one row each; a free slot holds zeros and is harmless company.

    tokens: int64 [slots, W], the forced tokens and then the generated ones.
    uniforms: float32 [slots, U], the draw of each generated token; U = 0 decodes greedily.
    start: int64 [slots, R], the position ids of the first token.
    first_index: int64 [slots], where the first token stands in its whole sequence.
    length: int64 [slots], how many of the tokens have their keys stored; the next step runs tokens[length].
    forced, last: int64 [slots], how many tokens are forced, and the index of the last that may be generated.
    prefix_count, example: int32 [slots], how much of which prompt is seen.
    """

    tokens: Tensor
    uniforms: Tensor
    start: Tensor
    first_index: Tensor
    length: Tensor
    forced: Tensor
    last: Tensor
    prefix_count: Tensor
    example: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Slots:
        wide = (torch.zeros(0, 0, dtype=dtype, device=device) for dtype in (torch.int64, torch.float32, torch.int64))
        long = (torch.zeros(0, dtype=torch.int64, device=device) for _ in range(4))
        short = (torch.zeros(0, dtype=torch.int32, device=device) for _ in range(2))
        return cls(*wide, *long, *short)

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def seat(self, first: int, **columns: Tensor) -> None:
        """Fill the free slots from `first` on: every column, [new slots, …]."""
        for name, new in columns.items():
            column = getattr(self, name)
            room = zip(column.shape, (first + len(new), *new.shape[1:]), strict=True)
            column = enlarged(column, *(max(size, bucket(needed)) for size, needed in room))
            place = (slice(first, first + len(new)), *map(slice, new.shape[1:]))
            column[place] = new.to(column)
            setattr(self, name, column)

    def move(self, sources: list[int], targets: list[int], free: int) -> None:
        """Copy the slots `sources` to `targets`; those from `free` on are free then."""
        for column in self.columns().values():
            column[targets] = column[sources]
            column[free:] = 0


class Decoding:
    """A model's text decoder over slots and key stores.

    choose: (logits [n, V], draws float32 [n] or None for greedy) -> token ids int64 [n], -1 where not finite.
    """

    def __init__(self, model: nn.Module, choose: Chooser) -> None:
        self.model, self.choose, self.head = model, choose, OutputHead(model)
        self.device = input_device(model)
        self.slots, self.stores = Slots.empty(self.device), KeyStores(self.device)
        self.attention = DecodeAttention(model, self.stores)
        self.flat_positions = True

    @property
    def extents(self) -> tuple:
        """Of all that a step reads or writes: a tensor is replaced if, and only if, one of these changes."""
        stores = self.stores.slots, self.stores.places, self.stores.prefix, len(self.stores.prefix_offsets)
        return (*stores, *(column.shape for column in self.slots.columns().values()))

    def prefill(self, prompts: list[DecoderInputs]) -> list[tuple[int, Tensor] | None]:
        """Run the decoder over all prompts together and store their keys and values.

        Returns each prompt's number and hidden states [L, hidden], None where these are not finite."""
        self.flat_positions = prompts[0].flat
        cache = DynamicCache()
        states = run_decoder(self.model, prompts, cache)
        hidden = [row[: len(prompt)] for row, prompt in zip(states, prompts, strict=True)]
        usable = torch.stack([row.isfinite().all() for row in hidden]).tolist()
        results: list[tuple[int, Tensor] | None] = [None] * len(prompts)
        for row in (row for row, finite in enumerate(usable) if finite):
            at = row, slice(None), slice(len(prompts[row]))
            layers = [(layer.keys[at], layer.values[at]) for layer in cache.layers]
            results[row] = self.stores.add_prompt(prompts[row].indices, layers), hidden[row]
        return results

    def move(self, sources: list[int], targets: list[int], free: int) -> None:
        """Move branches from the slots `sources` to `targets`, and free the slots from `free` on."""
        self.slots.move(sources, targets, free)
        if sources:
            self.stores.move(sources, targets)

    def step(self, rows: int, prefix: int) -> Tensor:
        """Run one token of each of the first `rows` slots, and choose the one that follows unless it is forced.

        prefix: no slot sees a key of a prompt from this place of the stores on. Returns what was chosen, int64 [rows],
        -1 where the logits are not finite.
        """
        slots = Slots(*(column[:rows] for column in self.slots.columns().values()))
        positions = (slots.start + slots.length[:, None]).T[..., None]
        with self.attention.over(self._seen(slots, prefix)):
            tokens = slots.tokens.gather(1, slots.length[:, None])
            logits = step_logits(self.model, tokens, positions[0] if self.flat_positions else positions, self.stores)
        slots.length.copy_(torch.minimum(slots.length + 1, slots.last))
        generated = (slots.length - slots.forced)[:, None]
        draws = slots.uniforms.gather(1, generated.clamp(min=0))[:, 0] if slots.uniforms.shape[1] else None
        chosen = self.choose(logits.to(self.device), draws)  # from the last device of a model that lies on several
        place = slots.length[:, None]
        following = torch.where(generated < 0, slots.tokens.gather(1, place), chosen[:, None].clamp(min=0))
        slots.tokens.scatter_(1, place, following)
        return chosen

    def _seen(self, slots: Slots, prefix: int) -> Rows:
        return Rows(
            places=slots.length.clone(),
            prefix_count=slots.prefix_count,
            example=slots.example,
            prefix_offsets=self.stores.prefix_offsets,
            extents=(self.stores.slots, self.stores.places, prefix),
            first_index=self.slots.first_index,
            prefix_index=self.stores.prefix_index,
        )


class EagerSteps:
    """Runs steps one by one, over exactly the live branches and the keys that are there."""

    per_check = 1  # steps between two looks of the host at what was generated

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    def rows(self, live: int) -> int:
        """How many slots to run for `live` branches."""
        return live

    def run(self, rows: int, count: int) -> Tensor:
        """`count` steps of the first `rows` slots; returns what was chosen, int64 [count, rows]."""
        prefix = self._decoding.stores.offsets[-1]
        return torch.stack([self._decoding.step(rows, prefix) for _ in range(count)])


class GraphSteps:
    """Replays captured steps. Row counts are rounded up, and keys are read as far as the stores reach, so that few
    graphs serve all. Should a model resist capture, its steps run eagerly."""

    per_check = 8

    def __init__(self, decoding: Decoding) -> None:
        self._decoding, self._eager = decoding, EagerSteps(decoding)
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._extents: tuple = ()
        self._memory: Any = None  # one pool for all graphs, whose results are read before the next replay
        self._capturable = True

    def rows(self, live: int) -> int:
        return bucket(live)

    def run(self, rows: int, count: int) -> Tensor:
        if self._extents != self._decoding.extents:  # the graphs read and write tensors that have been replaced
            self._graphs.clear()
            self._extents, self._memory = self._decoding.extents, torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._decoding.device):
            if (rows, count) not in self._graphs and self._capturable:
                self._capture(rows, count)
            if not self._capturable:
                return self._eager.run(rows, count)
            graph, chosen = self._graphs[rows, count]
            graph.replay()
            return chosen

    def _capture(self, rows: int, count: int) -> None:
        prefix = self._decoding.stores.prefix  # all of it: what is in use changes from replay to replay
        self._warm_up(rows, prefix)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._memory):
                chosen = torch.stack([self._decoding.step(rows, prefix) for _ in range(count)])
        except RuntimeError as error:
            self._capturable = False
            name = type(self._decoding.model).__name__
            _LOG.warning("decoding runs without CUDA graphs: a step of %s cannot be captured (%s)", name, error)
        else:
            self._graphs[rows, count] = graph, chosen

    def _warm_up(self, rows: int, prefix: int) -> None:
        """Run a step off the record, on a stream of its own: libraries initialise and attention chooses its path."""
        slots, stream = self._decoding.slots, torch.cuda.Stream()
        before = slots.length.clone(), slots.tokens.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decoding.step(rows, prefix)
        torch.cuda.current_stream().wait_stream(stream)
        slots.length.copy_(before[0])
        slots.tokens.copy_(before[1])


def steps_for(decoding: Decoding) -> EagerSteps | GraphSteps:
    return GraphSteps(decoding) if decoding.device.type == "cuda" else EagerSteps(decoding)
