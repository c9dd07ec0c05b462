"""When a branch has ended, and the text that it adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mmbdhs.decoding import Branch
from mmbdhs.native import BREAKS, STOPS, ops
from mmbdhs.sampling.splicing import Cut, ragged
from mmbdhs.vlm import decode_after

_TELLING = {chr(code) for code in STOPS | BREAKS} | {"\ufffd"}


@dataclass(eq=False)
class Continuation:
    """What a branch continues, and the text it adds.

    pair: the caller's example.
    cut: the cut that it completes; None for a whole response.
    context_ids: the tokens before it, as far as they matter to decoding its text.
    """

    pair: Any
    cut: Cut | None
    context_ids: tuple[int, ...]
    suspect: bool = False  # a stop may stand in the text, which the next token decides
    text: str = ""


class SentenceStops:
    """Decides which branches have ended: a sentence at its first sentence end, by the rule that splits references; a
    whole response at the end of sequence; both at their limit. Trims `ids` and sets the owner's text."""

    def __init__(self, tokenizer: Any, end_ids: set[int]) -> None:
        self._tokenizer, self._end_ids = tokenizer, end_ids
        self._telling: dict[int, bool] = {}

    def __call__(self, branches: list[Branch]) -> list[bool]:
        ended, checked = set(), []
        for branch in branches:
            last = self._is_final(branch)
            if branch.owner.cut is None:
                if last:
                    branch.owner.text = self._text(branch)
                    ended.add(branch)
            elif last or branch.owner.suspect or self._may_stop(branch.ids[-1]):
                checked.append((branch, last))
        ended.update(self._ended_sentences(checked))
        return [branch in ended for branch in branches]

    def _is_final(self, branch: Branch) -> bool:
        if branch.ids[-1] in self._end_ids:
            branch.ids.pop()
            return True
        return len(branch.ids) >= branch.limit

    def _may_stop(self, token: int) -> bool:
        """Whether the token's text could hold a stop, a line break, or a part of a character."""
        if token not in self._telling:
            self._telling[token] = not _TELLING.isdisjoint(self._tokenizer.decode([token]))
        return self._telling[token]

    def _ended_sentences(self, checked: list[tuple[Branch, bool]]) -> list[Branch]:
        """The exact rule, on the text of branches in which a stop may stand."""
        if not checked:
            return []
        texts = [branch.owner.cut.head + self._text(branch) for branch, _ in checked]
        begins = torch.tensor([branch.owner.cut.begin for branch, _ in checked])
        final = torch.tensor([last for _, last in checked])
        ends = ops.sentence_ends(*ragged(texts), begins, final).tolist()
        ended = []
        for (branch, _), text, end in zip(checked, texts, ends, strict=True):
            branch.owner.suspect = end == ops.UNDECIDED
            if end >= 0:
                self._finish(branch, text.encode()[len(branch.owner.cut.head.encode()) : end].decode())
                ended.append(branch)
        return ended

    def _finish(self, branch: Branch, text: str) -> None:
        # Tokens beyond the stop were only looked at.
        while branch.ids and len(decode_after(self._tokenizer, branch.owner.context_ids, branch.ids[:-1])) >= len(text):
            branch.ids.pop()
        # The white space before a sentence of which nothing was kept belongs to the sentence before.
        branch.owner.text = text if branch.owner.cut.kept.strip() else text.lstrip()

    def _text(self, branch: Branch) -> str:
        return decode_after(self._tokenizer, branch.owner.context_ids, branch.ids)
