"""Ways to attend from B branches to a shared prefix and to a suffix each, ours and everybody else's.

Each function takes operands and returns a call that gives [B, Hq, D]; what it prepares is not timed. The G = Hq / Hkv
query heads of a key head are rows of one product, which is at least as fast as expanded heads or `enable_gqa`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mmbdhs.native import shared_prefix_attention

Call = Callable[[], Tensor]


class Operands:
    """Random operands of one shape: q [B, Hkv, G, D], the prefix k, v [Hkv, P, D] with its visible rows, and suffixes
    k, v [B, Hkv, S, D]."""

    def __init__(self, shape: Any, device: torch.device, seed: int = 0) -> None:
        self.shape, self.device = shape, device
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, shape.head_dim, generator=generator, device=device).to(shape.dtype)

        self.q = normal(shape.branches, shape.kv_heads, shape.q_heads // shape.kv_heads)
        self.full = normal(shape.kv_heads, shape.prefix), normal(shape.kv_heads, shape.prefix)
        order = torch.randperm(shape.prefix, generator=generator, device=device)
        self.visible = order[: shape.visible].sort().values
        self.prefix = tuple(x[:, self.visible].contiguous() for x in self.full)
        suffix_size = (shape.branches, shape.kv_heads, shape.suffix)
        self.suffix = normal(*suffix_size), normal(*suffix_size)

    def truth(self) -> Tensor:
        """The result in float64, from the definition."""
        q, (pk, pv), (sk, sv) = self.q.double(), (x.double() for x in self.prefix), (x.double() for x in self.suffix)
        scores = torch.cat([torch.einsum("bhgd,hpd->bhgp", q, pk), torch.einsum("bhgd,bhsd->bhgs", q, sk)], -1)
        weights = (scores * q.shape[-1] ** -0.5).softmax(-1)
        of_prefix, of_suffix = weights.split([pk.shape[1], sk.shape[2]], dim=-1)
        out = torch.einsum("bhgp,hpd->bhgd", of_prefix, pv) + torch.einsum("bhgs,bhsd->bhgd", of_suffix, sv)
        return flat(out)


def flat(out: Tensor) -> Tensor:
    """[B, Hkv, G, D] as [B, Hq, D]."""
    return out.flatten(1, 2)


def rows_of_each_branch(prefix: tuple[Tensor, ...], suffix: tuple[Tensor, ...]) -> list[Tensor]:
    """Keys and values [B, Hkv, P + S, D] with the prefix repeated for each branch."""
    return [torch.cat([p.expand(len(s), -1, -1, -1), s], 2) for p, s in zip(prefix, suffix, strict=True)]


def ours(operands: Operands) -> dict[str, Call]:
    """The op on the compact prefix; with suffixes stored step by step; on the full prefix, its rows picked by index."""
    shape, q = operands.shape, flat(operands.q)
    count = torch.full((shape.branches,), shape.visible, dtype=torch.int32, device=operands.device)
    length = torch.full_like(count, shape.suffix)
    steps = [x.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3) for x in operands.suffix]
    index = operands.visible.int()
    return {
        "ours": lambda: shared_prefix_attention(q, *operands.prefix, count, *operands.suffix, length)[0],
        "ours_steps": lambda: shared_prefix_attention(q, *operands.prefix, count, *steps, length)[0],
        "ours_index": lambda: shared_prefix_attention(q, *operands.full, count, *operands.suffix, length, index)[0],
    }


def packed(operands: Operands) -> Call:
    """SDPA over one row: all branches' queries side by side, prefix then suffixes, a mask that keeps them apart."""
    shape = operands.shape
    k, v = (torch.cat([p, s.transpose(0, 1).flatten(1, 2)], 1) for p, s in _pairs(operands))
    rows = operands.q.transpose(0, 1).flatten(1, 2)[None]
    owner = torch.arange(shape.branches, device=operands.device)
    of_key = torch.cat([owner.new_full((shape.visible,), -1), owner.repeat_interleave(shape.suffix)])
    group = operands.q.shape[2]
    mask = (of_key == -1) | (of_key == owner.repeat_interleave(group)[:, None]) if shape.suffix else None
    return lambda: _branches_first(sdpa(rows, k[None], v[None], attn_mask=mask)[0], shape.branches)


def two_level(operands: Operands) -> Call:
    """Matrix products: all branches' queries over the prefix at once, each branch's over its suffix, one softmax."""
    shape, (pk, pv) = operands.shape, operands.prefix
    q = operands.q.transpose(0, 1).contiguous()  # [Hkv, B, G, D]
    sk, sv = (x.transpose(0, 1).contiguous() for x in operands.suffix)
    scale = shape.head_dim**-0.5

    def call() -> Tensor:
        of_prefix = (q.flatten(1, 2) @ pk.mT).unflatten(1, q.shape[1:3])
        scores = torch.cat([of_prefix, q @ sk.mT], -1) if shape.suffix else of_prefix
        weights = (scores.float() * scale).softmax(-1).to(q.dtype)
        out = (weights[..., : shape.visible].flatten(1, 2) @ pv).unflatten(1, q.shape[1:3])
        if shape.suffix:
            out = out + weights[..., shape.visible :] @ sv
        return out.transpose(0, 1).flatten(1, 2)

    return call


def two_flash(operands: Operands) -> Call:
    """Flash attention over the prefix for all branches at once, over the suffixes, and a merge by log-sum-exp."""
    shape, (pk, pv), (sk, sv) = operands.shape, operands.prefix, operands.suffix
    name = f"_scaled_dot_product_flash_attention{'_for_cpu' if operands.device.type == 'cpu' else ''}"
    flash = getattr(torch.ops.aten, name)
    rows = operands.q.transpose(0, 1).flatten(1, 2)[None]

    def call() -> Tensor:
        first, first_lse = flash(rows, pk[None], pv[None])[:2]
        first = _branches_first(first[0], shape.branches)
        if not shape.suffix:
            return first
        second, second_lse = (flat(x) for x in flash(operands.q, sk, sv)[:2])
        share = torch.sigmoid(_branches_first(first_lse[0], shape.branches) - second_lse)[..., None]
        return torch.lerp(second.float(), first.float(), share).to(second.dtype)

    return call


def compacted(operands: Operands) -> Call:
    """SDPA over batched rows of visible keys, the prefix repeated for each branch."""
    k, v = rows_of_each_branch(operands.prefix, operands.suffix)
    return lambda: flat(sdpa(operands.q, k, v))


def flash_rows(operands: Operands) -> Call:
    """The same, by the flash kernel: a GPU only."""
    if operands.device.type == "cpu":
        raise RuntimeError("a GPU kernel (SDPA on a CPU is flash attention already)")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    k, v = rows_of_each_branch(operands.prefix, operands.suffix)

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return flat(sdpa(operands.q, k, v))

    return call


def dense(operands: Operands) -> Call:
    """SDPA over batched rows of the whole prefix, hidden keys masked."""
    shape = operands.shape
    k, v = rows_of_each_branch(operands.full, operands.suffix)
    mask = torch.ones(k.shape[2], dtype=torch.bool, device=k.device)
    mask[: shape.prefix] = False
    mask[operands.visible] = True
    mask = None if shape.rho == 0 else mask[None, None, None]
    return lambda: flat(sdpa(operands.q, k, v, attn_mask=mask))


def flex(operands: Operands) -> Call:
    """FlexAttention over the packed row."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape, group = operands.shape, operands.q.shape[2]
    k, v = (torch.cat([p, s.transpose(0, 1).flatten(1, 2)], 1)[None] for p, s in _pairs(operands))
    rows = operands.q.transpose(0, 1).flatten(1, 2)[None].contiguous()

    def seen(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        own = (key - shape.visible) // max(shape.suffix, 1) == row // group
        return (key < shape.visible) | ((key >= shape.visible) & own)

    torch._dynamo.reset()  # of earlier shapes: after eight of them it would stop to compile
    mask = create_block_mask(seen, None, None, rows.shape[2], k.shape[2], device=str(operands.device))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: _branches_first(compiled(rows, k, v, block_mask=mask)[0], shape.branches)


OTHERS = {
    "packed": packed,
    "two_level": two_level,
    "two_flash": two_flash,
    "compacted": compacted,
    "flash_rows": flash_rows,
    "dense": dense,
    "flex": flex,
}


def spread_bytes(name: str, shape: Any) -> int:
    """Bytes of keys and values that a contestant with one row for each branch holds."""
    prefix = {"compacted": shape.visible, "flash_rows": shape.visible, "dense": shape.prefix}.get(name)
    if prefix is None:
        return 0
    return 2 * shape.branches * shape.kv_heads * (prefix + shape.suffix) * shape.head_dim * shape.dtype.itemsize


def _pairs(operands: Operands) -> list[tuple[Tensor, Tensor]]:
    return list(zip(operands.prefix, operands.suffix, strict=True))


def _branches_first(rows: Tensor, branches: int) -> Tensor:
    """[Hkv, B · G, …] as [B, Hq, …]."""
    return rows.unflatten(1, (branches, -1)).transpose(0, 1).flatten(1, 2)
