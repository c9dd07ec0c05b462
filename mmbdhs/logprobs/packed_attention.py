"""Attention of rows with one prompt and many responses: the prompt over itself, every response over the prompt and
itself.

Where FlexAttention is faster, it takes all rows at once. SDPA takes them part by part, and no mask is larger than the
part of a row that needs one.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from mmbdhs.logprobs.autotune import Path, attend
from mmbdhs.logprobs.flex_attention import FlexAttention
from mmbdhs.native import sdpa_attention
from mmbdhs.vlm import DecoderInputs, LayerCall, MaskRule, rule_of


class PackedAttention:
    """The attention handler of packed rows; it serves backward too, where layers may run again.

    rows: each prompt | response 1 | … .
    lengths: of each row's responses.
    eager: whether the model's own attention always writes its mask.
    """

    def __init__(self, rows: list[DecoderInputs], lengths: list[list[int]], eager: bool) -> None:
        self._rows, self._eager = rows, eager
        self._owners = [_owners(row, texts) for row, texts in zip(rows, lengths, strict=True)]
        self.windowed: list[bool] = []  # for each layer that attended, whether it did for its windows alone
        self._masks: dict[tuple[MaskRule, int, int], Tensor] = {}

    def windows(self, length: int) -> Tensor:
        """The tokens of each row whose output is read, int64 [B, K] on the CPU, in rows padded to `length`: the
        prompt's last token and the responses, preceded by further tokens where other rows have longer responses."""
        count = max(len(row) - row.prompt_length for row in self._rows) + 1
        begins = torch.tensor([min(row.prompt_length - 1, length - count) for row in self._rows])
        return begins[:, None] + torch.arange(count)

    def attend(self, call: LayerCall) -> Tensor:
        return self._attend(call, [(0, row.prompt_length, len(row)) for row in self._rows], False)

    def attend_windows(self, call: LayerCall) -> Tensor:
        """The same for queries [B, Hq, K, D] of the windows alone -> [B, K, Hq, D]."""
        begins = self.windows(call.key.shape[2])[:, 0].tolist()
        return self._attend(call, [(begin, len(row)) for begin, row in zip(begins, self._rows, strict=True)], True)

    def _attend(self, call: LayerCall, bounds: list[tuple[int, ...]], windowed: bool) -> Tensor:
        """bounds: for each row the index of its first query, and where its parts end."""
        self.windowed.append(windowed)
        rule = rule_of(call.mask, None if self._eager else call.layer)
        begins = torch.tensor([first for first, *_ in bounds])
        paths: dict[str, Path] = {
            "flex": lambda call: self._flex.attend(call, rule, begins),
            "sdpa": lambda call: self._part_by_part(call, rule, bounds),
        }
        return attend(call, rule, windowed, paths)

    @cached_property
    def _flex(self) -> FlexAttention:
        return FlexAttention(self._rows, self._owners)

    def _part_by_part(self, call: LayerCall, rule: MaskRule, bounds: list[tuple[int, ...]]) -> Tensor:
        """Attention by SDPA: each part of a row sees no key after its own end, and has a mask of its own."""
        parts = []
        for row, (first, *ends) in enumerate(bounds):
            for begin, end in pairwise((first, *ends)):
                if begin == end:
                    continue
                mask = self._mask(rule, row, slice(begin, end), call.query.device)
                q, k, v = call.query[row, :, begin - first : end - first], call.key[row], call.value[row]
                out = sdpa_attention(q, k[:, :end], v[:, :end], mask, call.scale, call.softcap)
                parts.append(out.transpose(0, 1))
            padding = call.query.shape[2] - (ends[-1] - first)
            parts.append(parts[-1].new_zeros(padding, *parts[-1].shape[1:]))
        return torch.cat(parts).unflatten(0, (len(bounds), -1))

    def _mask(self, rule: MaskRule, number: int, queries: slice, device: torch.device) -> Tensor | None:
        """Which keys the queries of a row see: bool [queries, keys up to their end]; None for a causal prompt."""
        row, owner = self._rows[number], self._owners[number]
        prompt = row.prompt_length
        if rule.causal and queries == slice(0, prompt):
            return None
        case = rule, number, queries.start
        if case not in self._masks:
            query, key = row.indices[queries, None], row.indices[None, : queries.stop]
            same = (owner[None, : queries.stop] == 0) | (owner[None, : queries.stop] == owner[queries, None])
            self._masks[case] = rule.for_row(number, query, key) & same & (key < (query + 1).clamp(min=prompt))
        return self._masks[case].to(device)


def _owners(row: DecoderInputs, lengths: list[int]) -> Tensor:
    """Which part of the row a token belongs to, int64 [n]: 0 for the prompt, i for response i."""
    counts = torch.tensor([row.prompt_length, *lengths], device=row.indices.device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
