"""Many continuations of many prompts, decoded together over shared prefixes.

A prompt's prefix is computed and stored once, however many branches continue it. Live branches occupy the slots
0 … n - 1, and every step runs one token of each, so the weights are read once for all. A branch sees its own prompt's
prefix, up to its own length of it, and its own tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mmbdhs.decoding.branch import Branch
from mmbdhs.decoding.engine import Chooser, DecodingEngine, positions_after
from mmbdhs.decoding.kept import Borrowed, borrow_steps, give_back
from mmbdhs.decoding.steps import EagerSteps, GraphSteps
from mmbdhs.errors import NonFiniteError
from mmbdhs.vlm import VLM, DecoderInputs

B = TypeVar("B", bound=Branch)


class BranchPool(Generic[B]):
    """Decodes branches together, at most `max_branches` at a time.

    vlm: a model that passed `check_decoding`.
    choose: (logits [n, V], draws [n] or None for greedy) -> token ids int64 [n], -1 where the logits are not finite.
    stop: (branches) -> for each of them, after every token, whether it has ended; true after `limit` tokens at the
        latest.
    usual_tokens: the most tokens that a branch usually adds, for which a GPU's memory is reserved.
    """

    def __init__(
        self,
        vlm: VLM,
        max_branches: int,
        choose: Chooser,
        stop: Callable[[list[B]], list[bool]],
        usual_tokens: int = 64,
    ) -> None:
        self._vlm, self._max_branches, self._stop = vlm, max_branches, stop
        self._borrow = partial(borrow_steps, vlm, choose, max_branches, usual_tokens)
        self._borrowed: Borrowed | None = None  # while there are branches
        self._live: list[B] = []
        self._waiting: deque[B] = deque()
        self._ended: list[B] = []  # before they had a slot

    @property
    def _steps(self) -> EagerSteps | GraphSteps:
        self._borrowed = self._borrowed or self._borrow()
        return self._borrowed.steps

    @property
    def _engine(self) -> DecodingEngine:
        return self._steps.engine

    @property
    def room(self) -> int:
        """How many more branches could decode now."""
        return self._max_branches - len(self._live) - len(self._waiting)

    def __len__(self) -> int:
        """The number of branches that `step` has not returned."""
        return len(self._live) + len(self._waiting) + len(self._ended)

    def add(self, batch: list[tuple[DecoderInputs, list[B]]]) -> None:
        """Prefill all prompts together, each once, and queue their branches.

        Branches of a prompt whose hidden states are not finite end at the next step with an error; the others go on.
        """
        prompts = [prompt for prompt, _ in batch]
        self._reclaim(sum(map(len, prompts)))
        self._steps.expect(prompts)
        started: list[tuple[B, Tensor]] = []
        results = self._engine.prefill(prompts)
        for (prompt, branches), result in zip(batch, results, strict=True):
            if result is None:
                for branch in branches:
                    branch.error = NonFiniteError("the model's hidden states are NaN or infinite over the prompt")
                self._ended += branches
                continue
            prompt_index, hidden = result
            after = positions_after(prompt)
            for branch in branches:
                branch.prompt_index = prompt_index
                branch.first_index, *branch.start = after[branch.prefix_length - 1]
                started.append((branch, hidden[branch.prefix_length - 1]))
        self._start(started)

    def step(self) -> list[B]:
        """Give every live branch its next tokens; returns the branches that ended."""
        self._fill_slots()
        ended = self._ended + self._advance()
        self.discard(ended)
        if not len(self) and self._borrowed:
            give_back(self._vlm, self._borrowed)
            self._borrowed = None
        return ended

    def discard(self, branches: list[B]) -> None:
        """Forget `branches`."""
        gone = set(branches)
        self._ended = [branch for branch in self._ended if branch not in gone]
        self._waiting = deque(branch for branch in self._waiting if branch not in gone)
        staying = [slot for slot, branch in enumerate(self._live) if branch not in gone]
        # The last of those that stay fill the holes that the others leave.
        sources = [slot for slot in staying if slot >= len(staying)]
        targets = sorted(set(range(len(staying))) - set(staying))
        if len(staying) < len(self._live):
            self._engine.move(sources, targets, free=len(staying))
            for source, target in zip(sources, targets, strict=True):
                self._live[target] = self._live[source]
            del self._live[len(staying) :]

    def _start(self, branches: list[tuple[B, Tensor]]) -> None:
        """Queue branches, given the hidden state before each. Without forced tokens the first token is chosen now."""
        free = [(branch, hidden) for branch, hidden in branches if not branch.forced_ids]
        ended: list[B] = []
        if free:
            logits = self._engine.logits(torch.stack([hidden for _, hidden in free]))
            for row, (branch, _) in enumerate(free):
                if branch.begin_suppress_tokens:
                    logits[row, list(branch.begin_suppress_tokens)] = -torch.inf
            uniforms = torch.stack([branch.uniforms[:1] for branch, _ in free])
            draws = uniforms[:, 0].to(logits.device, torch.float32) if uniforms.shape[1] else None
            chosen = self._engine.choose(logits, draws).tolist()
            ended = self._append([(branch, token) for (branch, _), token in zip(free, chosen, strict=True)])
        self._ended += ended
        gone = set(ended)
        self._waiting.extend(branch for branch, _ in branches if branch not in gone)

    def _fill_slots(self) -> None:
        """Move waiting branches into free slots."""
        first = len(self._live)
        new = [self._waiting.popleft() for _ in range(min(self._max_branches - first, len(self._waiting)))]
        if new:
            self._live += new
            self._engine.fill_slots(first, new)

    def _advance(self) -> list[B]:
        """Run a step and append the chosen tokens; returns the branches that ended."""
        if not self._live:
            return []
        chosen = self._steps.run(self._live).tolist()
        for branch in self._live:
            branch.stored += 1
        # A token chosen where a forced token follows is not used, but -1 must be seen: it stands for NaN.
        drawn = zip(self._live, chosen, strict=True)
        return self._append([(b, token) for b, token in drawn if token < 0 or b.stored >= len(b.forced_ids)])

    def _append(self, drawn: list[tuple[B, int]]) -> list[B]:
        """Append the chosen tokens; returns the branches that ended."""
        for branch, token in drawn:
            if token < 0:
                branch.error = NonFiniteError(f"the model's logits are NaN or infinite after {branch.ids}")
            else:
                branch.ids.append(token)
        running = [branch for branch, _ in drawn if not branch.error]
        stopped = [branch for branch, done in zip(running, self._stop(running), strict=True) if done]
        return [branch for branch, _ in drawn if branch.error] + stopped

    def _reclaim(self, wanted: int) -> None:
        """Free the keys of prompts that no branch needs, once they are the larger part, or `wanted` keys lack room."""
        cache, branches = self._engine.cache, [*self._live, *self._waiting]
        needed = sorted({branch.prompt_index for branch in branches})
        keys, stored = sum(cache.offsets[index + 1] - cache.offsets[index] for index in needed), cache.offsets[-1]
        if keys == stored or (2 * keys >= stored and stored + wanted <= cache.extents.prefix):
            return
        for branch in branches:
            branch.prompt_index = needed.index(branch.prompt_index)
        self._engine.keep_prompts(needed, [branch.prompt_index for branch in self._live])
