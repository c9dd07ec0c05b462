"""Many continuations of many prompts, decoded together over shared prefixes.

All live branches stand side by side in one row, above one pool of keys and values. A prompt's prefix is stored once
however many branches hang on it. Each key has an owner: a prompt, whose branches see it up to their own prefix
length, or a single branch. A boolean mask made from the owners keeps everything else apart, so the weights are read
once for all branches and no prefix is ever copied or padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mmbdhs.decoder_inputs import DecoderInputs, decoder_arguments, text_decoder

_GROWTH = 1.5  # of the pool's capacity, so that a key is moved a constant number of times on average


class NonFiniteError(ArithmeticError):
    """The model's hidden states or logits hold NaN or infinity, so no token can be chosen."""


@dataclass(eq=False)
class Branch:
    """One continuation: what it is conditioned on, and what has been generated so far.

    prefix_length: how many of its prompt's kept tokens it sees.
    forced_ids: tokens that follow the prefix in this branch alone.
    uniforms: the addressed draw of each generated token; empty to decode greedily.
    owner: whatever the caller wants back.
    ids: the tokens generated so far.
    error: set when the branch cannot go on.
    """

    prefix_length: int
    forced_ids: Sequence[int] = ()
    uniforms: Sequence[float] = ()
    owner: Any = None
    ids: list[int] = field(default_factory=list)
    error: Exception | None = None
    # Set by the pool: key owner of the prompt and of the branch, [R] position after the prefix, last hidden state.
    prompt_owner: int = 0
    own_owner: int = 0
    start: Sequence[int] = ()
    hidden: Tensor | None = None

    @property
    def pending_ids(self) -> Sequence[int]:
        """Tokens whose keys are not in the pool yet."""
        return self.ids[-1:] or self.forced_ids

    @property
    def pending_ranks(self) -> range:
        """Their places among the branch's own tokens."""
        end = len(self.forced_ids) + len(self.ids)
        return range(end - len(self.pending_ids), end)


class _PoolLayer(DynamicLayer):
    """Keys and values of one layer: [1, heads, capacity, head_dim], written in place, filled up to `length`."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = (_grow(store, start, end) for store in (self.keys, self.values))
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, index: Tensor) -> None:
        for store in (self.keys, self.values):
            store[:, :, : len(index)] = store.index_select(2, index)
        self.length = len(index)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0


def _grow(store: Tensor, length: int, needed: int) -> Tensor:
    grown = store.new_empty(*store.shape[:2], int(needed * _GROWTH) + 64, store.shape[3])
    grown[:, :, :length] = store[:, :, :length]
    return grown


class BranchPool:
    """Decodes branches together, at most `max_branches` at a time.

    model: a VLM of `transformers` whose decoder passed `longest_sequence`.
    choose: (logits [n, V], n draws or None for greedy) -> token ids int64 [n], -1 where the logits are not finite.
    stop: (branches) -> for each branch whether it has ended.
    """

    def __init__(
        self,
        model: nn.Module,
        max_branches: int,
        choose: Callable[[Tensor, list[float] | None], Tensor],
        stop: Callable[[list[Branch]], list[bool]],
    ) -> None:
        self._decoder = text_decoder(model)
        self._embed = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        self._device = self._embed.weight.device
        self._max_branches, self._choose, self._stop = max_branches, choose, stop
        self._flat_positions = True
        self._cache = Cache(layer_class_to_replicate=_PoolLayer)
        # Of each key [K]: its owner (negative: a prompt, positive: a branch) and its place among the owner's keys.
        self._owners = torch.empty(0, dtype=torch.int64, device=self._device)
        self._ranks = self._owners.clone()
        self._owners_given = 0
        self._live: list[Branch] = []
        self._waiting: deque[Branch] = deque()

    @property
    def room(self) -> int:
        """How many more branches could decode now."""
        return self._max_branches - len(self._live) - len(self._waiting)

    def __len__(self) -> int:
        """Branches that have not ended."""
        return len(self._live) + len(self._waiting)

    def add(self, batch: list[tuple[DecoderInputs, list[Branch]]]) -> None:
        """Prefill each prompt once, all together, and queue its branches. Branches of a prompt whose hidden states are
        not finite end at the next step, with an error; the others go on."""
        self._reclaim()
        prompts = [prompt for prompt, _ in batch]
        self._flat_positions = prompts[0].flat
        cache = DynamicCache()
        output = self._decoder(**decoder_arguments(prompts), past_key_values=cache, use_cache=True)
        for row, (prompt, its_branches) in enumerate(batch):
            hidden = output.last_hidden_state[row, : len(prompt)]
            if bool(hidden.isfinite().all()):
                self._store(prompt, [(layer.keys[row, None], layer.values[row, None]) for layer in cache.layers])
                self._enter(prompt, hidden, its_branches)
            else:
                for branch in its_branches:
                    branch.error = NonFiniteError("the model's hidden states are NaN or infinite over the prompt")
            self._waiting.extend(its_branches)

    def step(self) -> list[Branch]:
        """Give every live branch one more token; returns the branches that ended."""
        while self._waiting and len(self._live) < self._max_branches:
            self._live.append(self._waiting.popleft())
        self._forward([branch for branch in self._live if branch.pending_ids and not branch.error])
        self._append_tokens([branch for branch in self._live if not branch.error])
        running = [branch for branch in self._live if not branch.error]
        ended = [branch for branch in self._live if branch.error]
        ended += [branch for branch, done in zip(running, self._stop(running), strict=True) if done]
        self.discard(ended)
        return ended

    def discard(self, branches: list[Branch]) -> None:
        """Forget `branches`."""
        gone = set(branches)
        self._live = [branch for branch in self._live if branch not in gone]
        self._waiting = deque(branch for branch in self._waiting if branch not in gone)

    def _store(self, prompt: DecoderInputs, layers: list[tuple[Tensor, Tensor]]) -> None:
        length = len(prompt)
        for number, (keys, values) in enumerate(layers):
            self._cache.update(keys[:, :, :length], values[:, :, :length], number)
        self._owners_given += 1
        self._own([-self._owners_given] * length, list(range(length)))

    def _enter(self, prompt: DecoderInputs, hidden: Tensor, branches: list[Branch]) -> None:
        following = torch.cat([prompt.positions[:, 1:], prompt.positions[:, -1:] + 1], dim=1).T.tolist()
        prompt_owner = -self._owners_given
        for branch in branches:
            self._owners_given += 1
            branch.prompt_owner, branch.own_owner = prompt_owner, self._owners_given
            branch.start = following[branch.prefix_length - 1]
            # A copy: a view would keep the whole prompt's hidden states alive.
            branch.hidden = hidden[branch.prefix_length - 1].clone()

    def _own(self, owners: list[int], ranks: list[int]) -> None:
        self._owners = torch.cat([self._owners, torch.tensor(owners, device=self._device)])
        self._ranks = torch.cat([self._ranks, torch.tensor(ranks, device=self._device)])

    def _forward(self, branches: list[Branch]) -> None:
        """Run the pending tokens of `branches`; leaves the hidden state after the last one with each."""
        if not branches:
            return
        hidden = self._run(branches)
        last = accumulate(len(branch.pending_ids) for branch in branches)
        if bool(hidden.isfinite().all()):
            for branch, end in zip(branches, last, strict=True):
                branch.hidden = hidden[end - 1]
            return
        # One NaN spreads over the whole row (0 · NaN is NaN), so each branch is tried alone.
        self._keep(torch.arange(len(self._owners) - len(hidden), device=self._device))
        if len(branches) == 1:
            branches[0].error = NonFiniteError(f"the model's hidden states are NaN or infinite after {branches[0].ids}")
            return
        for branch in branches:
            self._forward([branch])

    def _run(self, branches: list[Branch]) -> Tensor:
        rows = [
            (token, rank, branch, [start + rank for start in branch.start])
            for branch in branches
            for token, rank in zip(branch.pending_ids, branch.pending_ranks, strict=True)
        ]
        tokens, ranks, owners, positions = zip(*rows, strict=True)
        self._own([branch.own_owner for branch in owners], list(ranks))
        position_ids = torch.tensor(positions, device=self._device).T[:, None]
        output = self._decoder(
            inputs_embeds=self._embed(torch.tensor([tokens], device=self._device)),
            attention_mask=self._mask(list(owners), list(ranks)),
            position_ids=position_ids[0] if self._flat_positions else position_ids,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[0]

    def _mask(self, branches: list[Branch], ranks: list[int]) -> Tensor:
        """What each query may see of the pool: [1, 1, queries, keys]."""
        columns = [(b.prompt_owner, b.prefix_length, b.own_owner, r) for b, r in zip(branches, ranks, strict=True)]
        prompt, length, own, rank = torch.tensor(columns, device=self._device).T[:, :, None]
        of_prompt = (self._owners == prompt) & (self._ranks < length)
        of_branch = (self._owners == own) & (self._ranks <= rank)
        visible = (of_prompt | of_branch)[None, None]
        if getattr(self._decoder.config, "_attn_implementation", "sdpa") == "sdpa":
            return visible
        dtype = self._embed.weight.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=self._device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )

    def _append_tokens(self, branches: list[Branch]) -> None:
        if not branches:
            return
        logits = self._head(torch.stack([branch.hidden for branch in branches]))
        draws = [branch.uniforms[len(branch.ids)] for branch in branches if branch.uniforms]
        for branch, token in zip(branches, self._choose(logits, draws or None).tolist(), strict=True):
            if token < 0:
                branch.error = NonFiniteError(f"the model's logits are NaN or infinite after {branch.ids}")
            else:
                branch.ids.append(token)

    def _reclaim(self) -> None:
        """Give back the keys that no branch will see again, once they are the larger part."""
        branches = [*self._live, *self._waiting]
        needed = {owner for branch in branches for owner in (branch.prompt_owner, branch.own_owner)}
        alive = torch.isin(self._owners, torch.tensor(sorted(needed), dtype=torch.int64, device=self._device))
        if 2 * int(alive.sum()) < len(alive):
            self._keep(alive.nonzero().flatten())

    def _keep(self, index: Tensor) -> None:
        for layer in self._cache.layers:
            layer.keep(index)
        self._owners, self._ranks = self._owners[index], self._ranks[index]
