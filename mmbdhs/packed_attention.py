"""Attention of rows that hold one prompt and many responses: the prompt over itself, every response over the prompt and
itself. No mask reaches over the prompt's own square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmbdhs.attention_interface import LayerCall
from mmbdhs.decoder_inputs import DecoderInputs
from mmbdhs.mask_rules import MaskRule, rule_of
from mmbdhs.native import reference


class PackedAttention:
    """Handler for `rows`, each prompt | response 1 | … ; it holds in backward too, where layers may run again.

    lengths: of each row's responses. eager: whether the model's own attention always makes a mask.
    """

    def __init__(self, rows: list[DecoderInputs], lengths: list[list[int]], eager: bool) -> None:
        self._rows, self._eager = rows, eager
        self._numbers = [_numbers(row, texts) for row, texts in zip(rows, lengths, strict=True)]
        self.layers_seen = 0
        self._seen: dict[tuple[MaskRule, int, bool], Tensor | None] = {}

    def attend(self, call: LayerCall) -> Tensor:
        query, key, value = call.query, call.key, call.value
        rule, length = rule_of(call.mask, None if self._eager else call.layer), query.shape[2]
        self.layers_seen += 1
        outputs = []
        for number, row in enumerate(self._rows):
            parts = []
            for begin, end in ((0, row.prompt_length), (row.prompt_length, len(row))):
                if begin == end:
                    continue
                seen = self._visible(rule, number, begin > 0, call.softcap, query.device)
                q, k, v = query[number, :, begin:end], key[number, :, :end], value[number, :, :end]
                parts.append(_attention(q, k, v, seen, call.scale, call.softcap))
            parts.append(parts[0].new_zeros(*parts[0].shape[:1], length - len(row), parts[0].shape[2]))
            outputs.append(torch.cat(parts, dim=1).transpose(0, 1))
        return torch.stack(outputs)

    def _visible(
        self, rule: MaskRule, number: int, of_responses: bool, softcap: float, device: torch.device
    ) -> Tensor | None:
        """bool [queries, keys] for a row's prompt or its responses; None where the prompt is plainly causal."""
        if rule.causal and not of_responses and not softcap:
            return None
        case = rule, number, of_responses
        if case not in self._seen:
            row, owner = self._rows[number], self._numbers[number]
            prompt = row.prompt_length
            queries = slice(prompt, len(row)) if of_responses else slice(prompt)
            keys = slice(len(row)) if of_responses else slice(prompt)
            query, key = row.indices[queries, None], row.indices[None, keys]
            own = (owner[None, keys] == 0) | (owner[None, keys] == owner[queries, None])
            self._seen[case] = rule.for_row(number, query, key) & own & (key < (query + 1).clamp(min=prompt))
        return self._seen[case].to(device)


def _numbers(row: DecoderInputs, lengths: list[int]) -> Tensor:
    """int64 [n]: 0 for the prompt's tokens, i for those of response i."""
    counts = torch.tensor([row.prompt_length, *lengths], device=row.indices.device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float) -> Tensor:
    """q [Hq, n, D] over k, v [Hkv, m, D] -> [Hq, n, D]; causal without `seen`."""
    if softcap:  # which SDPA does not know
        return reference.attend(q, k, v, seen, scale, softcap)[0]
    (out,) = functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=len(q) != len(k)
    )
    return out
