"""Many continuations of many prompts, decoded together over shared prefixes.

A prompt's prefix is computed and stored once however many branches hang on it. Live branches stand in the slots
0 … n - 1; every step runs one token of each, so the weights are read once for all. A branch sees its own prompt's
prefix, up to its own length of it, and its own tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.decoding.engine import Chooser, Decoding, steps_for
from mmbdhs.errors import NonFiniteError
from mmbdhs.vlm import DecoderInputs

_padded = partial(nn.utils.rnn.pad_sequence, batch_first=True)


@dataclass(eq=False)
class Branch:
    """One continuation: what it is conditioned on, and what has been generated so far.

    prefix_length: how many of its prompt's kept tokens it sees.
    limit: how many tokens it may generate.
    forced_ids: tokens that follow the prefix in this branch alone.
    uniforms: float [limit], the addressed draw of each generated token; empty to decode greedily.
    owner: whatever the caller wants back.
    ids: the tokens generated so far.
    error: set when the branch cannot go on.
    """

    prefix_length: int
    limit: int
    forced_ids: Sequence[int] = ()
    uniforms: Tensor = field(default_factory=lambda: torch.empty(0))
    owner: Any = None
    ids: list[int] = field(default_factory=list)
    error: Exception | None = None
    # Set by the pool: the prompt's number, [R] position and index after the prefix, how many of its keys are stored.
    prompt: int = 0
    start: Sequence[int] = ()
    first_index: int = 0
    stored: int = 0

    def stored_after(self, steps: int) -> int:
        return min(self.stored + steps, len(self.forced_ids) + self.limit)


class BranchPool:
    """Decodes branches together, at most `max_branches` at a time.

    model: a VLM of `transformers` that passed `probe`.
    choose: (logits [n, V], draws [n] or None for greedy) -> token ids int64 [n], -1 where the logits are not finite.
    stop: (branches) -> for each, after every token, whether it has ended; by `limit` tokens at the latest.
    """

    def __init__(
        self, model: nn.Module, max_branches: int, choose: Chooser, stop: Callable[[list[Branch]], list[bool]]
    ) -> None:
        self._max_branches, self._stop = max_branches, stop
        self._decoding = Decoding(model, choose)
        self._steps = steps_for(self._decoding)
        self._live: list[Branch] = []
        self._waiting: deque[Branch] = deque()
        self._ended: list[Branch] = []  # before they had a slot

    @property
    def room(self) -> int:
        """How many more branches could decode now."""
        return self._max_branches - len(self._live) - len(self._waiting)

    def __len__(self) -> int:
        """Branches that `step` has not returned."""
        return len(self._live) + len(self._waiting) + len(self._ended)

    def add(self, batch: list[tuple[DecoderInputs, list[Branch]]]) -> None:
        """Prefill each prompt once, all together, and queue its branches. Branches of a prompt whose hidden states are
        not finite end at the next step, with an error; the others go on."""
        self._reclaim()
        started: list[tuple[Branch, Tensor]] = []
        results = self._decoding.prefill([prompt for prompt, _ in batch])
        for (prompt, branches), result in zip(batch, results, strict=True):
            if result is None:
                for branch in branches:
                    branch.error = NonFiniteError("the model's hidden states are NaN or infinite over the prompt")
                self._ended += branches
                continue
            number, hidden = result
            places = torch.cat([prompt.indices[None], prompt.positions])
            following = torch.cat([places[:, 1:], places[:, -1:] + 1], dim=1).T.tolist()
            for branch in branches:
                branch.prompt = number
                branch.first_index, *branch.start = following[branch.prefix_length - 1]
                started.append((branch, hidden[branch.prefix_length - 1]))
        self._start(started)

    def step(self) -> list[Branch]:
        """Give every live branch its next tokens; returns the branches that ended."""
        self._seat()
        ended = self._ended + self._advance()
        self.discard(ended)
        return ended

    def discard(self, branches: list[Branch]) -> None:
        """Forget `branches`."""
        gone = set(branches)
        self._ended = [branch for branch in self._ended if branch not in gone]
        self._waiting = deque(branch for branch in self._waiting if branch not in gone)
        staying = [slot for slot, branch in enumerate(self._live) if branch not in gone]
        # The last of those that stay fill the holes that the others leave.
        sources = [slot for slot in staying if slot >= len(staying)]
        targets = sorted(set(range(len(staying))) - set(staying))
        if len(staying) < len(self._live):
            self._decoding.move(sources, targets, free=len(staying))
            for source, target in zip(sources, targets, strict=True):
                self._live[target] = self._live[source]
            del self._live[len(staying) :]

    def _start(self, branches: list[tuple[Branch, Tensor]]) -> None:
        """Queue branches, given the hidden state before each; what no forced token follows is chosen at once."""
        free = [(branch, hidden) for branch, hidden in branches if not branch.forced_ids]
        ended: list[Branch] = []
        if free:
            logits = self._decoding.head(torch.stack([hidden for _, hidden in free]))
            uniforms = torch.stack([branch.uniforms[:1] for branch, _ in free])
            draws = uniforms[:, 0].to(logits.device, torch.float32) if uniforms.shape[1] else None
            chosen = self._decoding.choose(logits, draws).tolist()
            ended = self._take([(branch, token) for (branch, _), token in zip(free, chosen, strict=True)])
        self._ended += ended
        gone = set(ended)
        self._waiting.extend(branch for branch, _ in branches if branch not in gone)

    def _seat(self) -> None:
        """Fill free slots with waiting branches."""
        first = len(self._live)
        new = [self._waiting.popleft() for _ in range(min(self._max_branches - first, len(self._waiting)))]
        if not new:
            return
        self._live += new
        forced = torch.tensor([len(branch.forced_ids) for branch in new])
        self._decoding.slots.seat(
            first,
            tokens=_padded([torch.tensor([*b.forced_ids, *b.ids, *[0] * (b.limit - len(b.ids))]) for b in new]),
            uniforms=_padded([branch.uniforms for branch in new]),
            start=torch.tensor([branch.start for branch in new]),
            first_index=torch.tensor([branch.first_index for branch in new]),
            length=torch.zeros_like(forced),
            forced=forced,
            last=forced + torch.tensor([branch.limit for branch in new]) - 1,
            prefix_count=torch.tensor([branch.prefix_length for branch in new]),
            example=torch.tensor([branch.prompt for branch in new]),
        )

    def _advance(self) -> list[Branch]:
        """Run some steps and take in what they chose; returns the branches that ended."""
        if not self._live:
            return []
        count, rows = self._steps.per_check, self._steps.rows(len(self._live))
        self._decoding.stores.reserve(rows, max(b.stored_after(count) for b in self._live))
        chosen = self._steps.run(rows, count)[:, : len(self._live)].tolist()
        ended: list[Branch] = []
        for tokens in chosen:
            gone = set(ended)
            drawn = [(b, token) for b, token in zip(self._live, tokens, strict=True) if b not in gone]
            for branch, _ in drawn:
                branch.stored += 1
            # What is chosen before a forced token is of no use, unless it tells of NaN.
            ended += self._take([(b, token) for b, token in drawn if token < 0 or b.stored >= len(b.forced_ids)])
        return ended

    def _take(self, drawn: list[tuple[Branch, int]]) -> list[Branch]:
        """Append what was chosen; returns the branches that ended."""
        for branch, token in drawn:
            if token < 0:
                branch.error = NonFiniteError(f"the model's logits are NaN or infinite after {branch.ids}")
            else:
                branch.ids.append(token)
        running = [branch for branch, _ in drawn if not branch.error]
        stopped = [branch for branch, done in zip(running, self._stop(running), strict=True) if done]
        return [branch for branch, _ in drawn if branch.error] + stopped

    def _reclaim(self) -> None:
        """Give back the keys of prompts that no branch needs, once they are the larger part."""
        stores, branches = self._decoding.stores, [*self._live, *self._waiting]
        needed = sorted({branch.prompt for branch in branches})
        keys = sum(stores.offsets[number + 1] - stores.offsets[number] for number in needed)
        if 2 * keys >= stores.offsets[-1]:
            return
        stores.keep_prompts(needed)
        for branch in branches:
            branch.prompt = needed.index(branch.prompt)
        for slot, branch in enumerate(self._live):
            self._decoding.slots.example[slot] = branch.prompt
