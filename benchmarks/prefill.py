"""Causal attention over a prompt with mostly hidden tokens: `masked_attention` against SDPA.

All contestants answer every query, hidden ones too. "dropped" answers the visible queries only, over the visible keys:
less work, and what the sampler does, because nothing reads what a hidden token makes. The last rows are whole models,
see `masked_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import masked_model
import torch
from measure import captured, fma_peak, median_of, repeats, thread_counts
from table import Options, Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mmbdhs.native import masked_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
FULL = [(dtype, rho, kv) for dtype in TOLERANCE for rho, kv in ((0.99, 32), (0.99, 8), (0.5, 32), (0.0, 32))]
QUICK = [(torch.bfloat16, 0.99, 8)]
COLUMNS = {
    **{"work": "<9", "dtype": "<8", "heads": ">5", "rho": ">4", "length": ">4", "threads": ">1"},
    **{name: ">8.2f" for name in ("ours", "dense", "compacted", "eager", "flex", "dropped")},
    **{"dense_over_ours": ">5.1f", "compacted_over_ours": ">5.1f", "floor": ">7.2f", "share": ">4.0%"},
}


def main(options: Options) -> None:
    print("\nms; floor: the multiply-adds of the visible pairs alone")
    heads, length = (8, 750) if options.quick else (32, 3000)
    with Table("prefill", COLUMNS, options) as table:
        for threads in thread_counts(options.device)[: 1 if options.quick else None]:
            torch.set_num_threads(threads)
            for dtype, rho, kv_heads in QUICK if options.quick else FULL:
                table.add(**measure(options, dtype, rho, heads, kv_heads, length))
        for row in masked_model.rows(options, 0.99):
            table.add(**row)


@torch.no_grad()
def measure(options: Options, dtype: torch.dtype, rho: float, heads: int, kv_heads: int, length: int) -> dict[str, Any]:
    """One row: q [1, Hq, L, 128], k and v [1, Hkv, L, 128]."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, length, 128, device=options.device).to(dtype) for n in (heads, kv_heads, kv_heads))
    visible = torch.zeros(length, dtype=torch.bool, device=options.device)
    visible[torch.randperm(length)[: round((1 - rho) * length)]] = True
    visible[0] = True  # so that every query sees a key: SDPA gives NaN where ours gives 0
    sides = contestants(q, k, v, visible)
    check(sides, visible, TOLERANCE[dtype])
    if options.device.type == "cuda":
        sides = {name: captured(side) for name, side in sides.items()}
    runs = 3 if options.quick else repeats(list(sides.values()), budget=4.0, most=15)
    times = {name: 1e3 * seconds for name, seconds in zip(sides, median_of(runs, *sides.values()), strict=True)}
    pairs = int((torch.arange(length, 0, -1, device=options.device) * visible).sum())  # key j: queries j … length - 1
    floor = 1e3 * 4 * heads * 128 * pairs / fma_peak(options.device, dtype)
    return {
        **{
            "work": "attention",
            "dtype": str(dtype).removeprefix("torch."),
            "heads": f"{heads}/{kv_heads}",
            "rho": rho,
            "length": length,
        },
        **times,
        **{"dense_over_ours": times["dense"] / times["ours"]},
        **{"compacted_over_ours": times["compacted"] / times["ours"]},
        **{"floor": floor, "share": floor / times["ours"]},
    }


def contestants(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Calls that give [1, Hq, L, D] ("dropped": [1, Hq, visible, D]); gathering and masks are prepared."""
    kept = visible.nonzero().flatten()
    order = torch.arange(len(visible), device=q.device)[:, None]
    few_k, few_v, few_q = (x[:, :, kept].contiguous() for x in (k, v, q))
    causal = order >= order.T
    grouped = {"enable_gqa": q.shape[1] != k.shape[1]}
    all_visible = bool(visible.all())
    dense_mask = {"is_causal": True} if all_visible else {"attn_mask": causal & visible}
    few_mask = {"is_causal": True} if all_visible else {"attn_mask": causal[:, kept]}
    return {
        "ours": lambda: masked_attention(q, k, v, visible[None], causal=True)[0],
        "dense": lambda: sdpa(q, k, v, **dense_mask, **grouped),
        "compacted": lambda: sdpa(q, few_k, few_v, **few_mask, **grouped),
        "dropped": lambda: sdpa(few_q, few_k, few_v, is_causal=True, **grouped),
    }


def check(sides: dict[str, Callable[[], Tensor]], visible: Tensor, tolerance: float) -> None:
    """Every side agrees with SDPA under the dense mask."""
    truth = sides["dense"]().float()
    for name, side in sides.items():
        wanted = truth[:, :, visible] if name == "dropped" else truth
        error = (side().float() - wanted).abs().max().item()
        assert error < tolerance, f"{name} is {error:.1e} away from SDPA under the dense mask"
