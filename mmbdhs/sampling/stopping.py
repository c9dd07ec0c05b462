"""When a response or a completed sentence has ended, and the text that it adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbdhs.decoding import Branch
from mmbdhs.native import BREAKS, STOPS, ops
from mmbdhs.sampling.splicing import Cut, SentenceSplice, ragged
from mmbdhs.vlm import decode_after

# A token without these ends no sentence: a bracket that may open a tag leaves only the stops after it undecided.
_SENTENCE_MARKS = {chr(code) for code in STOPS | BREAKS} | {"\ufffd"}


@dataclass(eq=False, kw_only=True)
class ResponseBranch(Branch):
    """A whole response on its way.

    context_ids: the tokens before it, as context for decoding its text.
    text: what it adds, once it has ended.
    end_id: the id that ended it; None where it reached its limit.
    """

    context_ids: tuple[int, ...]
    text: str = ""
    end_id: int | None = None


@dataclass(eq=False, kw_only=True)
class SentenceBranch(ResponseBranch):
    """The completion of a sentence on its way.

    cut: the sentence's kept part.
    undecided: whether the text so far may have ended the sentence, which the next token will tell. The kept part may
        close with a stop.
    """

    cut: Cut
    undecided: bool = True

    def splice(self) -> SentenceSplice:
        """The sentence, completed."""
        return self.cut.completed(self.text, self.ids)


class ResponseStops:
    """Decides which branches have ended: a sentence at its first end, by the rule that splits references; a whole
    response at the end of sequence; both at their limit. Trims the ids of those that ended, and sets their text.

    end_ids: the ids that end a response.
    """

    def __init__(self, tokenizer: Any, end_ids: set[int]) -> None:
        self._tokenizer, self._end_ids = tokenizer, end_ids
        self._may_stop: dict[int, bool] = {}

    def __call__(self, branches: Sequence[ResponseBranch]) -> list[bool]:
        ended: set[ResponseBranch] = set()
        checked: list[tuple[SentenceBranch, bool]] = []
        for branch in branches:
            final = self._is_final(branch)
            if not isinstance(branch, SentenceBranch):
                if final:
                    branch.text = self._text(branch)
                    ended.add(branch)
            elif final or branch.undecided or self._token_may_stop(branch.ids[-1]):
                checked.append((branch, final))
        ended.update(self._ended_sentences(checked))
        return [branch in ended for branch in branches]

    def _is_final(self, branch: ResponseBranch) -> bool:
        if branch.ids[-1] in self._end_ids:
            branch.end_id = branch.ids.pop()
            return True
        return len(branch.ids) >= branch.limit

    def _token_may_stop(self, token: int) -> bool:
        """Whether the token's text could contain a stop, a line break, or a part of a character."""
        if token not in self._may_stop:
            self._may_stop[token] = not _SENTENCE_MARKS.isdisjoint(self._tokenizer.decode([token]))
        return self._may_stop[token]

    def _ended_sentences(self, checked: list[tuple[SentenceBranch, bool]]) -> list[SentenceBranch]:
        """The exact rule, applied to the text of branches that may contain a stop."""
        if not checked:
            return []
        texts = [branch.cut.kept + self._text(branch) for branch, _ in checked]
        final: Tensor = torch.tensor([last for _, last in checked])
        ends = ops.sentence_ends(*ragged(texts), final).tolist()
        ended = []
        for (branch, _), text, end in zip(checked, texts, ends, strict=True):
            branch.undecided = end == ops.UNDECIDED
            if end >= 0:
                self._finish(branch, text.encode()[len(branch.cut.kept.encode()) : end].decode())
                ended.append(branch)
        return ended

    def _finish(self, branch: SentenceBranch, text: str) -> None:
        # Tokens after the stop only served to decide whether it ends the sentence.
        while branch.ids and len(decode_after(self._tokenizer, branch.context_ids, branch.ids[:-1])) >= len(text):
            branch.ids.pop()
        # If nothing of the sentence was kept, the gap before it is the reference's own.
        branch.text = text if branch.cut.keeps_content else _without_leading_gap(text)

    def _text(self, branch: ResponseBranch) -> str:
        return decode_after(self._tokenizer, branch.context_ids, branch.ids)


def _without_leading_gap(text: str) -> str:
    if not text:
        return text
    table, _ = ops.split_sentences(*ragged([text]))
    content_begin = int(table[0, 4])
    return text.encode()[content_begin:].decode()
