"""Log-probabilities of given tokens from hidden states, and their gradients: `chunked_logps` against full logits.

Forward and backward to the hidden states and, where it is not frozen, to the head's weight. "full" makes all logits at
once; "chunks" does the same for 128 tokens at a time and again in backward; "liger" is what Liger-Kernel's
chunked GRPO loss computes its log-probabilities with, where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from measure import median_of, peak_memory, repeats, thread_counts
from table import Options, Table
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from mmbdhs.logprobs import chunked_logps

Logps = Callable[[Tensor, Tensor, Tensor], Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
FULL = [
    (dtype, vocabulary, frozen)
    for dtype in TOLERANCE
    for vocabulary, frozen in ((32_000, False), (32_000, True), (150_000, False), (150_000, True))
]
QUICK = [(torch.float32, 4_000, False), (torch.bfloat16, 4_000, True)]
CONTESTANTS = ("full", "chunks", "liger", "ours")
COLUMNS = {
    **{"dtype": "<8", "vocabulary": ">7", "tokens": ">5", "head": "<6", "threads": ">1"},
    **{name: ">8.1f" for name in CONTESTANTS},
    **{f"{name}_over_ours": ">5.2f" for name in CONTESTANTS[:-1]},
    **{f"{name}_mib": ">7.0f" for name in CONTESTANTS},
}


def main(options: Options) -> None:
    print("\nms, forward and backward; MiB: the most that it holds, gradients included")
    torch.set_num_threads(thread_counts(options.device)[-1])
    tokens, width = (4096, 4096) if options.device.type == "cuda" else (512, 1024)
    with Table("logps", COLUMNS, options) as table:
        for dtype, vocabulary, frozen in QUICK if options.quick else FULL:
            table.add(**measure(options, dtype, vocabulary, frozen, 64 if options.quick else tokens, width))


def measure(
    options: Options, dtype: torch.dtype, vocabulary: int, frozen: bool, tokens: int, width: int
) -> dict[str, Any]:
    """One row: hidden [tokens, width], weight [vocabulary, width]."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=options.device).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=options.device) / width**0.5).to(dtype).requires_grad_(not frozen)
    labels = torch.randint(vocabulary, (tokens,), device=options.device)
    counts = torch.randn(tokens, device=options.device)

    def side(logps: Logps) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            values = logps(hidden, weight, labels)
            learned = [x for x in (hidden, weight) if x.requires_grad]
            return [values.detach(), *torch.autograd.grad((values * counts).sum(), learned)]

        return call

    sides = {name: side(logps) for name, logps in contestants().items()}
    check(sides, TOLERANCE[dtype])
    memory = {f"{name}_mib": peak_memory(call, options.device) for name, call in sides.items()}
    runs = 3 if options.quick else repeats(list(sides.values()), budget=8.0, most=15)
    times = {name: 1e3 * seconds for name, seconds in zip(sides, median_of(runs, *sides.values()), strict=True)}
    return {
        **{"dtype": str(dtype).removeprefix("torch."), "vocabulary": vocabulary, "tokens": tokens, "width": width},
        **{"head": "frozen" if frozen else "learns"},
        **times,
        **{f"{name}_over_ours": times[name] / times["ours"] for name in times if name != "ours"},
        **memory,
        **({"liger_kernel": version("liger-kernel")} if "liger" in sides else {}),
    }


def contestants() -> dict[str, Logps]:
    """hidden [T, H], weight [V, H], labels [T] -> float32 [T]."""
    sides = {"full": full, "chunks": in_chunks, "ours": chunked_logps}
    if find_spec("liger_kernel"):
        from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction as Liger

        sides["liger"] = lambda hidden, weight, labels: Liger.apply(hidden, weight, labels, None, 1.0, 4096)
    return {name: sides[name] for name in CONTESTANTS if name in sides}


def full(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The fastest and smallest of the plain forms; log_softmax or logsumexp and gather make one copy more."""
    return -cross_entropy(linear(hidden, weight).float(), labels, reduction="none")


def in_chunks(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    chunks = zip(hidden.split(128), labels.split(128), strict=True)
    return torch.cat([checkpoint(full, rows, weight, own, use_reentrant=False) for rows, own in chunks])


def check(sides: dict[str, Callable[[], list[Tensor]]], tolerance: float) -> None:
    """Every side's values and gradients agree with those of full logits."""
    truth = [x.float() for x in sides["full"]()]
    for name, side in sides.items():
        for got, wanted in zip(side(), truth, strict=True):
            error = ((got.float() - wanted).norm() / wanted.norm()).item()
            assert error < tolerance, f"{name} is {error:.1e} away from full logits"
