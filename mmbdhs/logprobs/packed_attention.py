"""Attention of rows that hold one prompt and many responses: the prompt over itself, every response over the prompt and
itself. No mask reaches over the prompt's own square."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from mmbdhs.native import softmax_attention
from mmbdhs.vlm import DecoderInputs, LayerCall, MaskRule, rule_of


class PackedAttention:
    """Handler for `rows`, each prompt | response 1 | … ; it holds in backward too, where layers may run again.

    lengths: of each row's responses. eager: whether the model's own attention always makes a mask.
    """

    def __init__(self, rows: list[DecoderInputs], lengths: list[list[int]], eager: bool) -> None:
        self._rows, self._eager = rows, eager
        self._numbers = [_numbers(row, texts) for row, texts in zip(rows, lengths, strict=True)]
        self.windowed: list[bool] = []  # of each layer that came through, whether its windows alone did
        self._seen: dict[tuple[MaskRule, int, int], Tensor] = {}

    def windows(self, length: int) -> Tensor:
        """int64 [B, K] on the CPU: of rows padded to `length` the prompt's last token, the responses and, where others'
        are longer, some tokens beside them."""
        count = max(len(row) - row.prompt_length for row in self._rows) + 1
        begins = torch.tensor([min(row.prompt_length - 1, length - count) for row in self._rows])
        return begins[:, None] + torch.arange(count)

    def attend(self, call: LayerCall) -> Tensor:
        self.windowed.append(False)
        return self._attended(call, [(0, row.prompt_length, len(row)) for row in self._rows])

    def attend_windows(self, call: LayerCall) -> Tensor:
        """As `attend`, with queries [B, Hq, K, D] of the windows alone -> [B, K, Hq, D]"""
        self.windowed.append(True)
        begins = self.windows(call.key.shape[2])[:, 0].tolist()
        return self._attended(call, [(begin, len(row)) for begin, row in zip(begins, self._rows, strict=True)])

    def _attended(self, call: LayerCall, bounds: list[tuple[int, ...]]) -> Tensor:
        """bounds: for each row where its first query stands, where attention has a mask of its own, where it ends."""
        rule = rule_of(call.mask, None if self._eager else call.layer)
        parts = []
        for number, (first, *ends) in enumerate(bounds):
            for begin, end in pairwise((first, *ends)):
                if begin == end:
                    continue
                seen = self._visible(rule, number, slice(begin, end), call)
                q, k, v = call.query[number, :, begin - first : end - first], call.key[number], call.value[number]
                parts.append(_attention(q, k[:, :end], v[:, :end], seen, call.scale, call.softcap).transpose(0, 1))
            padding = call.query.shape[2] - (ends[-1] - first)
            parts.append(parts[-1].new_zeros(padding, *parts[-1].shape[1:]))
        return torch.cat(parts).unflatten(0, (len(bounds), -1))

    def _visible(self, rule: MaskRule, number: int, queries: slice, call: LayerCall) -> Tensor | None:
        """bool [queries, keys up to their end] in a row; None where a whole prompt is plainly causal."""
        row, owner = self._rows[number], self._numbers[number]
        prompt = row.prompt_length
        if rule.causal and queries == slice(0, prompt) and not call.softcap:
            return None
        case = rule, number, queries.start
        if case not in self._seen:
            query, key = row.indices[queries, None], row.indices[None, : queries.stop]
            own = (owner[None, : queries.stop] == 0) | (owner[None, : queries.stop] == owner[queries, None])
            self._seen[case] = rule.for_row(number, query, key) & own & (key < (query + 1).clamp(min=prompt))
        return self._seen[case].to(call.query.device)


def _numbers(row: DecoderInputs, lengths: list[int]) -> Tensor:
    """int64 [n]: 0 for the prompt's tokens, i for those of response i."""
    counts = torch.tensor([row.prompt_length, *lengths], device=row.indices.device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float) -> Tensor:
    """q [Hq, n, D] over k, v [Hkv, m, D] -> [Hq, n, D]; causal without `seen`."""
    if softcap:  # which SDPA does not know
        return softmax_attention(q, k, v, seen, scale, softcap)[0]
    (out,) = functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=len(q) != len(k)
    )
    return out
