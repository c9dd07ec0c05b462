"""Attention masks as rules over token indices, which hold whichever tokens are left out.

A decoder of `transformers` asks for its masks by index functions: causal, a sliding window, chunks, blocks that see
themselves both ways. Under the implementation named here it gets a stand-in that remembers the function, and
attention asks that about the tokens that are there, by the indices that they have in the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from mmbdhs.errors import UnsupportedModelError

NAME = "mmbdhs"  # of the implementation, in both of transformers' interfaces


@dataclass(frozen=True)
class MaskRule:
    """function: (row, head, query, key) -> bool, of int64 indices that broadcast together, as `transformers` has it."""

    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    rows: tuple[MaskRule, ...] = ()  # of which this one is stacked

    @property
    def causal(self) -> bool:
        """Every token sees itself and all before it."""
        return self.function is causal_mask_function

    def __call__(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query sees the key: bool, of the indices' common shape."""
        seen = self.function(row, torch.zeros_like(row), query, key)
        return seen.expand(torch.broadcast_shapes(row.shape, query.shape, key.shape))

    def then(self, response: MaskRule, prompt_length: int) -> MaskRule:
        """This rule for the queries of a prompt, which see nothing beyond it, `response` for those that follow it."""
        if self.function is response.function:
            return self
        last = prompt_length - 1  # that a rule about the prompt's tokens may know

        def function(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = self(row, query.clamp(max=last), key.clamp(max=last)) & (key <= last)
            return torch.where(query <= last, seen, response(row, query, key))

        return MaskRule(function)

    def for_row(self, number: int, query: Tensor, key: Tensor) -> Tensor:
        """The same for one row of those that the rule is about: query, key without a row dimension."""
        if self.rows:
            return self.rows[number].for_row(0, query, key)
        return self(torch.full_like(query, number), query, key)


CAUSAL = MaskRule(causal_mask_function)
EVERYTHING = MaskRule(bidirectional_mask_function)


class RuleMask(Tensor):
    """A rule in the clothes of the 4-D mask that it stands for; models hand it through to their attention."""

    rule: MaskRule

    def to(self, *args: Any, **kwargs: Any) -> RuleMask:
        return self  # wherever it is, it holds nothing

    def __getitem__(self, index: Any) -> Tensor:
        part = self.as_subclass(Tensor)[index]
        return self if part.shape == self.shape else part


def stand_in(rule: MaskRule, rows: int, queries: int, keys: int, device: torch.device | str) -> RuleMask:
    # NaN, so that whatever is made of it instead shows.
    mask = torch.full((), torch.nan, device=device).expand(rows, 1, queries, keys).as_subclass(RuleMask)
    mask.rule = rule
    return mask


def rule_of(mask: Tensor | None, layer: nn.Module | None = None) -> MaskRule:
    """The rule behind an attention mask. Raises UnsupportedModelError for a mask that has none.

    layer: that it was handed to. Where no mask need be made, `transformers` lets the layer say what it is: PaliGemma's
    see their whole prefix both ways."""
    rule = CAUSAL if mask is None else getattr(mask, "rule", None)
    if rule is not None and rule.causal and not getattr(layer, "is_causal", True):
        return EVERYTHING
    if rule is None:
        raise UnsupportedModelError(
            "model: needs masks made by transformers' mask functions (create_causal_mask and its kin), got a "
            f"{type(mask).__name__} made otherwise"
        )
    return rule


def table_rule(mask: Tensor) -> MaskRule:
    """The rule that a mask [1, 1, L, L] spells out: bool, or 0 where a key is seen and the dtype's least elsewhere."""
    if mask.is_floating_point():
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        if bool((hidden | (mask == 0)).all()):
            mask = ~hidden
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[:2] != (1, 1):
        raise UnsupportedModelError(
            f"model: needs a mask for one sequence and all heads that hides or shows, got {mask.dtype} "
            f"{list(mask.shape)}"
        )
    return MaskRule(lambda row, head, query, key: mask[0, 0][query, key])


def stacked(rules: list[MaskRule]) -> MaskRule:
    """Row i by rule i, each asked about its row 0; queries and keys come with a leading row dimension."""

    def function(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = torch.zeros_like(row[0])
        return torch.stack([rule(first, q, k) for rule, q, k in zip(rules, query, key, strict=True)])

    return CAUSAL if all(rule.causal for rule in rules) else MaskRule(function, tuple(rules))


def _make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable,
    allow_is_causal_skip: bool = True,
    device: Any = "cpu",
    **others: Any,
) -> RuleMask:
    """The registered implementation. What the 2-D mask among `others` pads, attention knows without it."""
    rule = MaskRule(mask_function if allow_is_causal_skip else partial(mask_function))  # the latter is never `causal`
    return stand_in(rule, batch_size, q_length, kv_length, device)


AttentionMaskInterface.register(NAME, _make_mask)
