"""Packed rows by FlexAttention: one compiled call for all rows of a layer, with a mask that is computed and not stored.

Without torch.compile, FlexAttention would write the whole matrix of scores, so here it never runs without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mmbdhs.vlm import DecoderInputs, LayerCall, MaskRule

# (row, head, query, key) -> bool, of int64 indices without dimensions
_MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# torch.compile makes a graph for each kind of mask, with and without gradients, for one row or one block and for more.
_MOST_GRAPHS = 64
_LIMIT = "recompile_limit" if hasattr(dynamo_config, "recompile_limit") else "cache_size_limit"  # its name before 2.7


class FlexAttention:
    """The attention of packed rows, all at once.

    rows: each prompt | response 1 | … .
    owners: which part of its row each token belongs to, int64 [n] for each row: 0 for the prompt, i for response i.
    """

    def __init__(self, rows: list[DecoderInputs], owners: list[Tensor]) -> None:
        self._indices = nn.utils.rnn.pad_sequence([row.indices for row in rows], batch_first=True)
        self._owners = nn.utils.rnn.pad_sequence(owners, batch_first=True, padding_value=-1)
        self._prompt = torch.tensor([row.prompt_length for row in rows], device=self._indices.device)
        self._masks: dict[tuple[MaskRule, int, torch.device], BlockMask] = {}

    def attend(self, call: LayerCall, rule: MaskRule, begins: Tensor) -> Tensor:
        """Attention of queries [B, Hq, K, D] over keys and values [B, Hkv, L, D] -> [B, K, Hq, D]; 0 for padding.

        begins: int64 [B], which token of its row is each row's first query.

        Raises what torch.compile raises where it cannot compile this.
        """
        device = call.query.device
        query, key, value = _as_autocast(call)
        mask = self._mask(rule, begins, query.shape[2], device)
        cap = _soft_cap(call.softcap, device) if call.softcap else None
        with dynamo_config.patch(_LIMIT, _MOST_GRAPHS), torch.autocast(device.type, enabled=False):
            out: Tensor = compiled(device.type)(query, key, value, cap, mask, call.scale)
        return out.transpose(1, 2)

    def _mask(self, rule: MaskRule, begins: Tensor, queries: int, device: torch.device) -> BlockMask:
        case = rule, queries, device
        if case not in self._masks:
            tensors = (x.to(device) for x in (self._indices, self._owners, self._prompt, begins))
            seen = _mask_function(self._rule_function(rule, device), *tensors)
            rows, length = self._indices.shape
            self._masks[case] = create_block_mask(seen, rows, None, queries, length, device=device)
        return self._masks[case]

    def _rule_function(self, rule: MaskRule, device: torch.device) -> Callable[..., Tensor]:
        """The rule's function. Rows with rules of their own share a table of what these say, bool [B, L, L]: as code,
        each number of rows and every coincidence of their lengths would be compiled again."""
        if not rule.rows:
            return rule.function
        rows, length = self._indices.shape
        row, index = (torch.arange(size, device=self._indices.device) for size in (rows, length))
        query, key = index[:, None].expand(rows, -1, 1), index[None].expand(rows, 1, -1)
        table = rule(row[:, None, None], query, key).to(device)
        return lambda row, head, query, key: table[row, query, key]


def _mask_function(
    rule: Callable[..., Tensor], indices: Tensor, owners: Tensor, prompt: Tensor, begins: Tensor
) -> _MaskFunction:
    """Which keys a query sees: those that the rule shows it of the prompt and of its own response."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query = query + begins[row]
        owner, key_owner = owners[row, query], owners[row, key]
        query_index, key_index = indices[row, query], indices[row, key]
        own = (owner >= 0) & ((key_owner == 0) | (key_owner == owner))
        before = key_index < torch.maximum(query_index + 1, prompt[row])
        return own & before & rule(row, head, query_index, key_index)

    return seen


@functools.cache
def _soft_cap(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.tensor(softcap, device=device)  # torch.compile would take a number for float64

    def capped(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _as_autocast(call: LayerCall) -> tuple[Tensor, ...]:
    """Queries, keys and values in the dtype of autocast, as SDPA would take them."""
    operands, kind = (call.query, call.key, call.value), call.query.device.type
    if not torch.is_autocast_enabled(kind):
        return operands
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in operands)


@functools.cache
def compiled(kind: str) -> Any:
    """The compiled call for one type of device.

    Lengths are symbols, so that not every batch is compiled again, but not on a CPU: PyTorch's generator of C++ code
    confuses the names of many sizes.
    """
    return torch.compile(_attend, fullgraph=True, dynamic=kind != "cpu")


def _attend(
    query: Tensor, key: Tensor, value: Tensor, cap: Callable[..., Tensor] | None, mask: BlockMask, scale: float
) -> Any:
    if not torch.compiler.is_dynamo_compiling():
        raise RuntimeError("FlexAttention needs torch.compile, which is switched off")
    return flex_attention(query, key, value, cap, mask, scale, enable_gqa=query.shape[1] != key.shape[1])
