"""A whole LLaVA-1.6 over a prompt whose image tokens are mostly hidden by its 2-D mask, one attention after another.

"forward" gives logits of the response. "step" is a forward and a backward pass to all parameters of the decoder; the
vision tower is frozen. "dropped" is no attention but the library's own way: hidden tokens never enter the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llava
import torch
from measure import median_of, repeats
from table import Options
from torch import Tensor

from mmbdhs import register_attention
from mmbdhs.vlm import VLM, capture_decoder_inputs, logits_of, run_decoder

TEXT, RESPONSE = 40, 64
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
IMPLEMENTATIONS = {"ours": "mmbdhs", "dense": "sdpa", "eager": "eager", "flex": "flex_attention"}
SIZE, SMALL = llava.Size(layers=2, hidden=1024, head_dim=128), llava.Size(layers=2, hidden=128)


def rows(options: Options, rho: float) -> list[dict[str, Any]]:
    """The rows of one model, "forward" and "step", with the share `rho` of its image tokens hidden."""
    model = llava.model(SMALL if options.quick else SIZE, 1000, 999, options.device)
    model.requires_grad_(False).model.language_model.requires_grad_(True)
    register_attention()
    inputs = masked_inputs(rho, options)
    results = []
    for work, run in (("forward", forward), ("step", step)):
        sides, left_out = contestants(model, inputs, run, options)
        runs = 3 if options.quick else repeats(list(sides.values()), budget=60.0, most=7)
        times = {name: 1e3 * seconds for name, seconds in zip(sides, median_of(runs, *sides.values()), strict=True)}
        ratios = {f"{name}_over_ours": seconds / times["ours"] for name, seconds in times.items() if name != "ours"}
        text = model.config.text_config
        results.append(
            {
                **{"work": work, "dtype": str(model.dtype).removeprefix("torch."), "model": llava.name(model)},
                **{"heads": f"{text.num_attention_heads}/{text.num_key_value_heads}", "layers": text.num_hidden_layers},
                **{"rho": rho, "length": inputs["input_ids"].shape[1], **times, **ratios, "left_out": left_out},
            }
        )
    return results


def masked_inputs(rho: float, options: Options) -> dict[str, Tensor]:
    """A square image, text and a response; 0 in the mask at hidden image tokens."""
    torch.manual_seed(0)
    words = torch.randint(3, 900, (1, TEXT + RESPONSE))
    image = torch.full((1, llava.IMAGE_TOKENS), 999)
    ids = torch.cat([words[:, : TEXT // 2], image, words[:, TEXT // 2 :]], dim=1)
    mask = torch.ones_like(ids)
    order = torch.randperm(llava.IMAGE_TOKENS)[: round(rho * llava.IMAGE_TOKENS)]
    mask[0, TEXT // 2 + order] = 0
    pixels = {"pixel_values": torch.randn(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])}
    inputs = {"input_ids": ids, "attention_mask": mask, **pixels}
    return {name: value.to(options.device) for name, value in inputs.items()}


def contestants(
    model: Any, inputs: dict[str, Tensor], run: Callable[[Any, dict[str, Tensor]], list[Tensor]], options: Options
) -> tuple[dict[str, Callable[[], list[Tensor]]], dict[str, str]]:
    """The calls that agree with SDPA under its dense mask, and why others are left out."""

    def side(implementation: str) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            model.set_attn_implementation({"text_config": implementation})
            return run(model, inputs)

        return call

    sides = {name: side(implementation) for name, implementation in IMPLEMENTATIONS.items()}
    left_out = {}
    if run is forward:
        sides["dropped"] = lambda: dropped(model, inputs)
    if options.device.type == "cpu":
        del sides["flex"]
        left_out["flex"] = "compiles for minutes and has no backward pass: only on a CUDA device"
    truth = sides["dense"]()
    for name in list(sides):
        try:
            found = sides[name]()
        except (RuntimeError, NotImplementedError) as error:
            del sides[name]
            left_out[name] = str(error).splitlines()[0][:200]
            continue
        for one, other in zip(found, truth, strict=True):
            gap = ((one - other).norm() / other.norm()).item()
            assert gap < TOLERANCE[model.dtype], f"{name} is {gap:.1e} away from SDPA under its dense mask"
    return sides, left_out


@torch.no_grad()
def forward(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits of the response, [R, V]."""
    return [model(**inputs, logits_to_keep=RESPONSE, use_cache=False).logits[0]]


def step(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The response's mean negative log-probability, and its gradient of the first layer's queries."""
    logits = model(**inputs, logits_to_keep=RESPONSE + 1, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits.float(), inputs["input_ids"][0, -RESPONSE:])
    model.zero_grad()
    loss.backward()
    return [loss.detach(), model.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone()]


@torch.no_grad()
def dropped(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """`forward` as the library runs it."""
    vlm = VLM.of(model)
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    captured = capture_decoder_inputs(vlm, given, inputs["input_ids"].shape[1] - RESPONSE)
    image = inputs["input_ids"][0] == vlm.image_token_id
    visible = inputs["attention_mask"][0, image].nonzero().flatten().cpu()
    return [logits_of(vlm, run_decoder(vlm, [captured.keep_visible(visible)])[0, -RESPONSE:])]
