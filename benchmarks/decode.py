"""One decoding step of B branches over one prompt: the sampler's pool against batched rows, as `generate` decodes.

The prompt has 2,928 image tokens (1% are visible) and 120 tokens of text; LLaMA decoders of growing size, random
weights, greedy. "dynamic" and "static" keep a full-length row for each branch with hidden keys masked, in a
DynamicCache and a StaticCache; "compact" keeps rows without the hidden keys, the best that a batch of rows can do. The
chosen tokens of all are asserted equal in float32. Floor: reading the weights once, or multiplying by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llava
import torch
from llava import IMAGE_TOKENS, SEVEN_BILLION, Size
from measure import copy_bandwidth, fma_peak, median_of, thread_counts
from table import Options, Table
from torch import Tensor
from transformers import DynamicCache, StaticCache

from mmbdhs.decoding import Branch, BranchPool, TokenChooser
from mmbdhs.vlm import VLM, DecoderInputs, decoder_arguments

TEXT_TOKENS = 120
STEPS = 8  # in one timed call: on a GPU the pool runs several between two looks at what was chosen
COLUMNS = {
    **{"parameters": ">6.0f", "dtype": "<8", "branches": ">2", "threads": ">1"},
    **{name: ">8.2f" for name in ("ours", "compact", "dynamic", "static", "floor")},
    **{"bound": "<6", "share": ">4.0%", "equal": ">5.0%"},
}


@torch.no_grad()
def main(options: Options) -> None:
    print("\nms for a step; parameters: millions of the decoder; equal: tokens that all sides chose alike")
    sizes = [Size(2, 256)] if options.quick else [Size(4, 512), Size(8, 1024)]
    if options.device.type == "cuda":
        sizes = [Size(4, 512)] if options.quick else [Size(8, 2048), SEVEN_BILLION]
    with Table("decode", COLUMNS, options) as table:
        for size in sizes:
            model = llava.model(size, vocabulary=32000, image_token=31999, device=options.device)
            for threads in thread_counts(options.device)[: 1 if options.quick else None]:
                torch.set_num_threads(threads)
                for branches in (8,) if options.quick else (8, 32, 64):
                    table.add(**measure(model, branches, options))


def measure(model: Any, branches: int, options: Options) -> dict[str, Any]:
    """One row: B branches, each from its own place near the end of the prompt."""
    runs, warm_up = (1, STEPS) if options.quick else (3, 4 * STEPS)
    length = warm_up + (runs + 2) * STEPS
    prompt = Prompt.make(model, branches)
    limit = memory_limit(options.device)
    sides, left_out = {"ours": Pool(model, prompt, branches, length)}, {}
    for name in ("compact", "static", "dynamic"):
        needed = prompt.row_bytes(model, name != "compact", length) * branches * (2 if name == "dynamic" else 1)
        if needed > limit:
            left_out[name] = f"its rows need {needed / 2**30:.0f} GiB"
        else:
            sides[name] = Rows(model, prompt, name, length)
            limit -= needed
    for side in sides.values():
        side.advance(warm_up)
    times = median_of(runs, *(lambda side=side: side.advance(STEPS) for side in sides.values()))
    seconds = {name: time / STEPS for name, time in zip(sides, times, strict=True)}
    chosen = [side.chosen() for side in sides.values()]
    shared = min(tokens.shape[1] for tokens in chosen)
    equal = min(float((tokens[:, :shared] == chosen[0][:, :shared]).double().mean()) for tokens in chosen)
    # Random weights make near ties, which rounding may decide otherwise; after one, a branch goes its own way.
    assert equal > 0.9 or model.dtype != torch.float32, f"only {equal:.1%} of the tokens agree"
    weights = [*VLM.of(model).decoder.parameters(), model.get_output_embeddings().weight]
    weights = sum(w.nbytes for w in weights) - model.get_input_embeddings().weight.nbytes
    memory = weights / copy_bandwidth(options.device)
    products = 2 * branches * weights / model.dtype.itemsize / fma_peak(options.device, model.dtype)
    floor = max(memory, products)
    return {
        **{"parameters": weights / model.dtype.itemsize / 1e6, "dtype": str(model.dtype).removeprefix("torch.")},
        **{"branches": branches, **{name: 1e3 * value for name, value in seconds.items()}},
        **{
            "floor": 1e3 * floor,
            "bound": "memory" if floor == memory else "fma",
            "share": floor / seconds["ours"],
            "equal": equal,
            "left_out": left_out,
        },
    }


def memory_limit(device: torch.device) -> int:
    """Bytes that the caches of all baselines together may take."""
    if device.type == "cpu":
        return 4 << 30
    torch.cuda.empty_cache()
    return int(0.8 * torch.cuda.mem_get_info(device)[0])


@dataclass(frozen=True)
class Prompt:
    """The visible part of a prompt, where its tokens stood, and how much of it each branch sees."""

    inputs: DecoderInputs
    kept: Tensor
    lengths: Tensor

    @classmethod
    def make(cls, model: Any, branches: int) -> Prompt:
        device = model.device
        total = IMAGE_TOKENS + TEXT_TOKENS
        embeds = 0.02 * torch.randn(total, model.config.text_config.hidden_size, device=device).to(model.dtype)
        indices = torch.arange(total, device=device)
        full = DecoderInputs(embeds, indices[None], torch.arange(20, 20 + IMAGE_TOKENS), indices, total)
        inputs = full.keep_visible(torch.randperm(IMAGE_TOKENS)[: IMAGE_TOKENS // 100].sort().values)
        return cls(inputs, inputs.positions[0], len(inputs) - torch.arange(branches, device=device) % 16)

    def row_bytes(self, model: Any, full: bool, generated: int) -> int:
        """The bytes of the keys and values of one row."""
        config = model.config.text_config
        tokens = (IMAGE_TOKENS + TEXT_TOKENS if full else len(self.inputs)) + generated
        return 2 * config.num_hidden_layers * tokens * config.hidden_size * model.dtype.itemsize


class Pool:
    """The sampler's decoding."""

    def __init__(self, model: Any, prompt: Prompt, branches: int, limit: int) -> None:
        chooser = TokenChooser([], temperature=0.0, top_k=0, top_p=1.0)
        self._pool = BranchPool(VLM.of(model), branches, chooser, lambda live: [False] * len(live))
        self._branches = [Branch(length, limit) for length in prompt.lengths.tolist()]
        self._pool.add([(prompt.inputs, self._branches)])

    def advance(self, steps: int) -> None:
        """Choose `steps` more tokens in each branch."""
        end = len(self._branches[0].ids) + steps
        while len(self._branches[0].ids) < end:
            self._pool.step()

    def chosen(self) -> Tensor:
        """int64 [B, steps]"""
        return torch.tensor([branch.ids for branch in self._branches])


class Rows:
    """A row for each branch, its first keys copied from one prefill. kind: "dynamic", "static" or "compact"."""

    def __init__(self, model: Any, prompt: Prompt, kind: str, steps: int) -> None:
        self._decoder, self._head = VLM.of(model).decoder, model.get_output_embeddings()
        self._embed = model.get_input_embeddings()
        once = DynamicCache()
        arguments = decoder_arguments([prompt.inputs])
        hidden = self._decoder(**arguments, past_key_values=once, use_cache=True).last_hidden_state[0]
        places = torch.arange(len(prompt.kept), device=model.device) if kind == "compact" else prompt.kept
        length, branches = int(places[-1]) + 1, len(prompt.lengths)
        config = model.config.text_config
        self._cache = StaticCache(config, length + steps) if kind == "static" else DynamicCache()
        for number, layer in enumerate(once.layers):
            rows = (x.new_zeros(branches, x.shape[1], length, x.shape[3]) for x in (layer.keys, layer.values))
            filled = (r.index_copy_(2, places, x.expand(branches, -1, -1, -1)) for r, x in _with(rows, layer))
            self._cache.update(*filled, number)
        self._mask = torch.zeros(branches, length, dtype=torch.int64, device=model.device)
        seen = torch.arange(len(places), device=model.device) < prompt.lengths[:, None]
        self._mask[:, places] = seen.long()
        self._positions = prompt.kept[prompt.lengths - 1] + 1
        self._tokens = [self._head(hidden[prompt.lengths - 1]).argmax(-1)]

    def advance(self, steps: int) -> None:
        """Choose `steps` more tokens in each row."""
        for _ in range(steps):
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
            output = self._decoder(
                inputs_embeds=self._embed(self._tokens[-1])[:, None],
                attention_mask=self._mask,
                position_ids=(self._positions + len(self._tokens) - 1)[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
            self._tokens.append(self._head(output.last_hidden_state[:, -1]).argmax(-1))

    def chosen(self) -> Tensor:
        """int64 [B, steps]"""
        return torch.stack(self._tokens, dim=1).cpu()


def _with(rows: Any, layer: Any) -> Any:
    return zip(rows, (layer.keys, layer.values), strict=True)
