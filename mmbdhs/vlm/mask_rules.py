"""Attention masks as rules over token indices, which hold whichever tokens are left out.

A decoder of `transformers` describes its masks by index functions: causal, a sliding window, chunks, blocks that see
themselves in both directions. Under the implementation registered here the decoder gets a placeholder that carries
the function, and attention evaluates it at the indices that the kept tokens have in the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from mmbdhs.errors import UnsupportedModelError

IMPLEMENTATION = "mmbdhs_rules"  # the name of these masks, and of the attention that reads them, in transformers


@dataclass(frozen=True)
class MaskRule:
    """Which keys a query sees, by the indices of both in the whole sequence.

    function: (row, head, query, key) -> bool, of int64 indices that broadcast together, as `transformers` defines it.
    rows: the rules of the single rows, for a rule over several.
    explicit: whether the model wants the mask written out even where it is plainly causal.
    """

    function: Callable[..., Any]  # transformers annotates its own functions with int
    rows: tuple[MaskRule, ...] = ()
    explicit: bool = False

    @property
    def causal(self) -> bool:
        """Whether every token sees itself and all before it, and attention may run without a mask."""
        return self.function is causal_mask_function and not self.explicit

    def __call__(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query sees the key: bool, of the common shape of the indices."""
        seen = self.function(row, torch.zeros_like(row), query, key)
        return seen.expand(torch.broadcast_shapes(row.shape, query.shape, key.shape))

    def then(self, response: MaskRule, prompt_length: int) -> MaskRule:
        """The rule that is this one for the prompt's queries, which see no response, and `response` for later ones."""
        if self.function is response.function and self.explicit == response.explicit:
            return self
        last = prompt_length - 1  # a rule may look indices up in a table of the prompt's length

        def function(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = self(row, query.clamp(max=last), key.clamp(max=last)) & (key <= last)
            return torch.where(query <= last, seen, response(row, query, key))

        return MaskRule(function)

    def for_row(self, row: int, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query sees the key in one row of the batch; query and key have no row dimension."""
        if self.rows:
            return self.rows[row].for_row(0, query, key)
        return self(torch.full_like(query, row), query, key)


CAUSAL = MaskRule(causal_mask_function)
EVERYTHING = MaskRule(bidirectional_mask_function)


class RuleMask(Tensor):
    """Placeholder tensor with the shape of a 4-D mask; carries the `MaskRule` through the model to our attention."""

    rule: MaskRule

    # Accelerate's hooks move the arguments of a layer to its device, and some attention functions slice their mask to
    # the number of keys, mask[:, :, :, :n]. Both must leave the rule in place: the tensor holds no data to move, and
    # a slice that keeps everything is the same mask. Any other slice loses the rule, which `rule_of` then reports.

    def to(self, *args: Any, **kwargs: Any) -> RuleMask:
        return self

    def __getitem__(self, index: Any) -> Tensor:
        part = self.as_subclass(Tensor)[index]
        return self if part.shape == self.shape else part


def rule_mask(rule: MaskRule, rows: int, queries: int, keys: int, device: torch.device | str) -> RuleMask:
    """A placeholder [rows, 1, queries, keys] for `rule`."""
    # NaN shows in the output if a model computes with the placeholder.
    mask = torch.full((), torch.nan, device=device).expand(rows, 1, queries, keys).as_subclass(RuleMask)
    mask.rule = rule
    return mask


def rule_of(mask: Tensor | None, layer: nn.Module | None = None) -> MaskRule:
    """The rule that an attention mask carries. Raises UnsupportedModelError for a mask that carries none.

    layer: the layer that received the mask. Where no mask needs to be made, `transformers` lets the layer decide:
        PaliGemma's layers see their whole prefix in both directions.
    """
    rule = CAUSAL if mask is None else getattr(mask, "rule", None)
    if rule is not None and rule.causal and not getattr(layer, "is_causal", True):
        return EVERYTHING
    if rule is None:
        raise UnsupportedModelError(
            "model: needs masks made by transformers' mask functions (create_causal_mask and similar), got a "
            f"{type(mask).__name__} made otherwise"
        )
    return rule


def table_rule(mask: Tensor) -> MaskRule:
    """The rule that looks a written mask up.

    mask: [1, 1, L, L], bool, or floats that are 0 where a key is seen and the dtype's least number elsewhere.

    Raises UnsupportedModelError for a mask that weighs keys or differs by head.
    """
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
    """The rule of a batch whose row i follows rule i. Queries and keys come with a leading row dimension."""

    def function(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = torch.zeros_like(row[0])  # each rule is about a sequence of its own
        return torch.stack([rule(first, q, k) for rule, q, k in zip(rules, query, key, strict=True)])

    return CAUSAL if all(rule.causal for rule in rules) else MaskRule(function, tuple(rules))


def _make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    allow_is_causal_skip: bool = True,
    device: Any = "cpu",
    **others: Any,
) -> RuleMask:
    """The registered implementation. Padding, which `others` describes, is known to attention without it."""
    rule = MaskRule(mask_function, explicit=not allow_is_causal_skip)
    return rule_mask(rule, batch_size, q_length, kv_length, device)


AttentionMaskInterface.register(IMPLEMENTATION, _make_mask)
