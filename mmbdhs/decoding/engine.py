"""One more token for every slot: the state of decoding on the model's device, and the step that advances it.

A step waits for nothing and decides nothing on the host, so steps can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from mmbdhs.decoding.attention import DecodeAttention
from mmbdhs.decoding.attention_paths import DecodeBatch
from mmbdhs.decoding.branch import Branch
from mmbdhs.decoding.kv_cache import BranchKVCache, bucket, grow, on_device
from mmbdhs.vlm import VLM, DecoderInputs, logits_of, run_decoder, step_logits

Chooser = Callable[[Tensor, Tensor | None], Tensor]

_padded = partial(nn.utils.rnn.pad_sequence, batch_first=True)


@dataclass
class Slots:
    """The branches in the slots, one row each. Unused slots are zero-filled; running them has no effect.

    tokens: int64 [slots, W], the forced tokens and then the generated ones.
    uniforms: float32 [slots, U], the draw of each generated token; U = 0 for greedy decoding.
    start: int64 [slots, R], the position ids of the first token.
    first_index: int64 [slots], the index of the first token in its whole sequence.
    length: int64 [slots], how many of the tokens have their keys stored; the next step runs tokens[length].
    forced: int64 [slots], how many of the tokens are forced.
    last: int64 [slots], the index of the last token that may be generated.
    prefix_count: int32 [slots], how many of the prompt's tokens the branch sees.
    prompt_index: int32 [slots], the prompt's number in the cache.
    """

    tokens: Tensor
    uniforms: Tensor
    start: Tensor
    first_index: Tensor
    length: Tensor
    forced: Tensor
    last: Tensor
    prefix_count: Tensor
    prompt_index: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Slots:
        wide = (torch.zeros(0, 0, dtype=dtype, device=device) for dtype in (torch.int64, torch.float32, torch.int64))
        long = (torch.zeros(0, dtype=torch.int64, device=device) for _ in range(4))
        short = (torch.zeros(0, dtype=torch.int32, device=device) for _ in range(2))
        return cls(*wide, *long, *short)

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def fill(self, first: int, **columns: Tensor) -> None:
        """Write new rows into the slots from `first` on: every column, [new slots, …]."""
        for name, new in columns.items():
            column = getattr(self, name)
            room = zip(column.shape, (first + len(new), *new.shape[1:]), strict=True)
            column = grow(column, *(max(size, bucket(needed)) for size, needed in room))
            rows = (slice(first, first + len(new)), *map(slice, new.shape[1:]))
            column[rows] = new.to(column)
            setattr(self, name, column)

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for `slots` branches of `tokens` tokens."""
        for name, column in self.columns().items():
            width = (tokens, *column.shape[2:]) if name == "tokens" else column.shape[1:]
            setattr(self, name, grow(column, slots, *width))

    def move(self, sources: Tensor, targets: Tensor, free: int) -> None:
        """Copy the slots `sources` to `targets`, both int64 [n], and clear the slots from `free` on."""
        for column in self.columns().values():
            column[targets] = column[sources]
            column[free:] = 0


class DecodingEngine:
    """A model's text decoder over slots and the branch cache. The model may keep it, so it does not keep the model.

    choose: (logits [n, V], draws float32 [n] or None for greedy) -> token ids int64 [n], -1 where not finite.
    """

    def __init__(self, vlm: VLM, choose: Chooser) -> None:
        self._vlm, self.choose = ref(vlm), choose
        self.device = vlm.device
        self.slots, self.cache = Slots.empty(self.device), BranchKVCache(self.device)
        self.attention = DecodeAttention(vlm, self.cache)
        self._positions_2d = True

    @property
    def vlm(self) -> VLM:
        """The model. Raises ReferenceError if it has been deleted."""
        vlm = self._vlm()
        if vlm is None:
            raise ReferenceError("model: has been deleted while it was in use")
        return vlm

    @property
    def extents(self) -> tuple[Any, ...]:
        """The sizes of all tensors that a step reads or writes; a tensor is replaced if, and only if, one changes."""
        columns = (column.shape for column in self.slots.columns().values())
        return (*self.cache.extents, len(self.cache.prefix_offsets), *columns)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] for hidden states [n, hidden]."""
        return logits_of(self.vlm, hidden)

    def prefill(self, prompts: list[DecoderInputs]) -> list[tuple[int, Tensor] | None]:
        """Run the decoder over all prompts together and store their keys and values.

        Returns for each prompt its number in the cache and its hidden states [L, hidden], or None where these are not
        finite.
        """
        self._positions_2d = prompts[0].positions_2d
        computed = DynamicCache()
        states = run_decoder(self.vlm, prompts, computed)
        hidden = [row[: len(prompt)] for row, prompt in zip(states, prompts, strict=True)]
        usable = torch.stack([row.isfinite().all() for row in hidden]).tolist()
        results: list[tuple[int, Tensor] | None] = [None] * len(prompts)
        for row in (row for row, finite in enumerate(usable) if finite):
            at = row, slice(None), slice(len(prompts[row]))
            layers = [(layer.keys[at], layer.values[at]) for layer in cast("list[Any]", computed.layers)]
            results[row] = self.cache.add_prompt(prompts[row].indices, layers), hidden[row]
        return results

    def fill_slots(self, first: int, branches: Sequence[Branch]) -> None:
        """Put branches that have not decoded yet into the slots from `first` on."""
        forced = torch.tensor([len(branch.forced_ids) for branch in branches])
        known = [[*branch.forced_ids, *branch.ids] for branch in branches]
        unknown = [[0] * (branch.limit - len(branch.ids)) for branch in branches]
        self.slots.fill(
            first,
            tokens=_padded([torch.tensor([*ids, *zeros]) for ids, zeros in zip(known, unknown, strict=True)]),
            uniforms=_padded([branch.uniforms for branch in branches]),
            start=torch.tensor([branch.start for branch in branches]),
            first_index=torch.tensor([branch.first_index for branch in branches]),
            length=torch.zeros_like(forced),
            forced=forced,
            last=forced + torch.tensor([branch.limit for branch in branches]) - 1,
            prefix_count=torch.tensor([branch.prefix_length for branch in branches]),
            prompt_index=torch.tensor([branch.prompt_index for branch in branches]),
        )

    def move(self, sources: list[int], targets: list[int], free: int) -> None:
        """Move branches from the slots `sources` to `targets`, and free the slots from `free` on."""
        numbers = on_device([*sources, *targets], self.device)
        index = numbers[: len(sources)], numbers[len(sources) :]
        self.slots.move(*index, free)
        if sources:
            self.cache.move(*index)

    def keep_prompts(self, numbers: list[int], prompt_index: list[int]) -> None:
        """Forget every prompt but `numbers` (ascending), which are renumbered from 0.

        prompt_index: the new number of the prompt of each slot in use.
        """
        self.cache.keep_prompts(numbers)
        self.slots.prompt_index[: len(prompt_index)] = on_device(prompt_index, self.device, torch.int32)

    def clear(self) -> None:
        """Forget all branches and prompts. The stores keep their sizes."""
        self.move([], [], free=0)
        self.keep_prompts([], [])

    def step(self, rows: int, prefix: int) -> Tensor:
        """Run one token of each of the first `rows` slots, and choose the token that follows unless it is forced.

        prefix: number of keys at the beginning of the prefix store beyond which no slot sees any.

        Returns the chosen tokens, int64 [rows], -1 where the logits are not finite.
        """
        slots = Slots(*(column[:rows] for column in self.slots.columns().values()))
        positions = (slots.start + slots.length[:, None]).T[..., None]
        with self.attention.over(self._batch(slots, prefix)):
            tokens = slots.tokens.gather(1, slots.length[:, None])
            logits = step_logits(self.vlm, tokens, positions[0] if self._positions_2d else positions, self.cache)
        slots.length.copy_(torch.minimum(slots.length + 1, slots.last))
        generated = (slots.length - slots.forced)[:, None]
        draws = slots.uniforms.gather(1, generated.clamp(min=0))[:, 0] if slots.uniforms.shape[1] else None
        chosen = self.choose(logits.to(self.device), draws)  # logits come from the last device of a spread model
        column = slots.length[:, None]
        following = torch.where(generated < 0, slots.tokens.gather(1, column), chosen[:, None].clamp(min=0))
        slots.tokens.scatter_(1, column, following)
        return chosen

    def _batch(self, slots: Slots, prefix: int) -> DecodeBatch:
        return DecodeBatch(
            suffix_positions=slots.length.clone(),
            prefix_count=slots.prefix_count,
            prompt_index=slots.prompt_index,
            prefix_offsets=self.cache.prefix_offsets,
            extents=self.cache.extents._replace(prefix=prefix),
            first_index=self.slots.first_index,
            prefix_index=self.cache.prefix_index,
        )


def positions_after(prompt: DecoderInputs) -> list[list[int]]:
    """For each token of the prompt the index in the whole sequence and the R position ids that follow it."""
    known = torch.cat([prompt.indices[None], prompt.positions])
    return torch.cat([known[:, 1:], known[:, -1:] + 1], dim=1).T.tolist()
