"""One decoding step on a GPU, apart from all else: eager, captured and replayed, at LLaVA-1.6-7B's size.

"usual" is what sampling runs: 13 prompts of 160 visible tokens with five branches each. The others are corners: few and
many branches of one prompt, grouped heads, a prompt of 32,768 tokens. "capture" is what the one step costs more that is
captured after it has run; "kernels" how many the device runs in a step; "gib" the most memory that was allocated. A row
keeps the most expensive kernels of a step.

On a CPU steps run eagerly, and the model is small: for a look at what the numbers mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import llava
import torch
from llava import SEVEN_BILLION, Size
from measure import wall_seconds
from table import Options, Table

from mmbdhs.decoding import Branch, DecodingEngine, TokenChooser
from mmbdhs.decoding.steps import EagerSteps, GraphSteps
from mmbdhs.vlm import VLM, DecoderInputs

COLUMNS = {
    **{"case": "<14", "prompts": ">3", "branches": ">3", "keys": ">6", "kv_heads": ">3"},
    **{name: ">8.2f" for name in ("eager", "capture", "replay")},
    **{"kernels": ">6", "gib": ">6.1f"},
}
STEPS = 24  # the eighth is captured, the later ones are replays


@dataclass(frozen=True)
class Case:
    name: str
    prompts: int = 13
    branches: int = 5  # of each prompt
    keys: int = 160  # of each prompt
    kv_heads: int = 0  # 0 for as many as query heads


CASES = (
    Case("usual"),
    Case("one branch", 1, 1),
    Case("one prompt", 1, 64),
    Case("grouped heads", kv_heads=8),
    Case("long prompt", 1, 8, 32768, kv_heads=8),
)


@torch.no_grad()
def main(options: Options) -> None:
    on_gpu = options.device.type == "cuda"
    size = SEVEN_BILLION if on_gpu and not options.quick else Size(2, 256)
    print("\nms for a step")
    with Table("decode_step", COLUMNS, options) as table:
        for case in CASES if on_gpu else CASES[:1]:
            torch.manual_seed(0)
            sized = replace(size, kv_heads=case.kv_heads) if size is SEVEN_BILLION else size
            model = llava.model(sized, vocabulary=32000, image_token=31999, device=options.device)
            table.add(**measure(model, case, on_gpu))
            del model


def measure(model: Any, case: Case, on_gpu: bool) -> dict[str, Any]:
    engine = DecodingEngine(VLM.of(model), TokenChooser([], temperature=0.0, top_k=0, top_p=1.0))
    count = case.prompts * case.branches
    steps = GraphSteps(engine, count, usual_tokens=64) if on_gpu else EagerSteps(engine)
    prompts = [_prompt(model, case.keys) for _ in range(case.prompts)]
    steps.expect(prompts)
    numbers = [prefilled[0] for (prefilled,) in (engine.prefill([prompt]) for prompt in prompts) if prefilled]
    live = [Branch(case.keys, 64, prompt_index=n, start=(case.keys,)) for n in numbers for _ in range(case.branches)]
    engine.fill_slots(0, live)

    def step() -> None:
        steps.run(live)
        for branch in live:
            branch.stored += 1

    times = [1e3 * wall_seconds(step, lambda: None) for _ in range(STEPS)]
    eager = statistics.median(times[2:7])
    row = {"case": case.name, "prompts": case.prompts, "branches": count, "keys": case.keys, "eager": eager}
    row["kv_heads"] = case.kv_heads or model.config.text_config.num_attention_heads
    if on_gpu:
        row |= {"capture": times[7] - 2 * eager, "replay": statistics.median(times[8:])} | _profile(step)
        row["gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return row


def _prompt(model: Any, keys: int) -> DecoderInputs:
    device = model.device
    embeds = 0.02 * torch.randn(keys, model.config.text_config.hidden_size, device=device).to(model.dtype)
    places = torch.arange(keys, device=device)
    return DecoderInputs(embeds, places[None], places[:0], places, keys)


def _profile(step: Callable[[], None]) -> dict[str, Any]:
    """What the device runs in a step: how many kernels, and those that take most of the time (µs, calls)."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    top = [[event.key[:80], round(event.self_device_time_total, 1), event.count] for event in events[:12]]
    return {"kernels": sum(event.count for event in events), "profile": top}
