"""Is leaving hidden tokens out the same as masking them? Asked of the model at hand, at its first use."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mmbdhs.decoder_inputs import DecoderInputs, UnsupportedModelError, decoder_arguments, text_decoder

_IMAGE_TOKENS, _TEXT_TOKENS = 16, 32  # enough to tell, and a small part of one pair's work
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}

_SOUND: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def probe(model: nn.Module, inputs: DecoderInputs, ids: Tensor) -> None:
    """Compare dropped with masked, and decoder + head with the model's own forward, on a short excerpt of an encoded
    example; once for each model. Raises UnsupportedModelError with the measured difference.

    inputs: of the whole example. ids: its token ids, int64 [L].
    """
    if model in _SOUND:
        return
    comparisons = {
        "leaving image tokens out against masking them": _dropped_and_masked(model, inputs),
        "its decoder and output head against its own forward": _parts_and_whole(model, inputs, ids),
    }
    differences = {what: _difference(*logits) for what, logits in comparisons.items()}
    for what, (difference, tolerance) in differences.items():
        if difference > tolerance:
            raise UnsupportedModelError(
                f"model: {type(model).__name__} differs in {what}: by {difference:.2g} of the logits' spread, where "
                f"rounding makes at most {tolerance:g}"
            )
    if all(math.isfinite(difference) for difference, _ in differences.values()):
        _SOUND.add(model)


def _dropped_and_masked(model: nn.Module, inputs: DecoderInputs) -> tuple[Tensor, Tensor]:
    """Logits after the excerpt, with every other image token hidden either way."""
    text = torch.arange(max(len(inputs) - _TEXT_TOKENS, 0), len(inputs))
    excerpt = inputs.select(torch.cat([inputs.image_positions[:_IMAGE_TOKENS], text]).unique())
    hidden = excerpt.image_positions[::2]
    kept = torch.ones(len(excerpt), dtype=torch.bool)
    kept[hidden] = False
    arguments = decoder_arguments([excerpt])
    arguments["attention_mask"][:, hidden] = 0
    rest = decoder_arguments([excerpt.select(kept.nonzero().flatten())])
    return _last_logits(model, rest), _last_logits(model, arguments)


def _parts_and_whole(model: nn.Module, inputs: DecoderInputs, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits after the last text tokens, by the parts that decoding uses and by the whole model."""
    ids = ids[max(int(inputs.image_positions[-1]) + 1, len(ids) - _TEXT_TOKENS) :]
    positions = torch.arange(len(ids), device=ids.device)[None]
    text = DecoderInputs(
        embeds=model.get_input_embeddings()(ids[None])[0],
        positions=positions.expand(len(inputs.positions), -1),
        image_positions=torch.empty(0, dtype=torch.int64),
        flat=inputs.flat,
    )
    whole = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, -1]
    return _last_logits(model, decoder_arguments([text])), whole


def _last_logits(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    return model.get_output_embeddings()(text_decoder(model)(**arguments, use_cache=False).last_hidden_state[0, -1])


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Distance in units of the expected logits' spread, and what rounding may make of it."""
    spread = torch.linalg.vector_norm(expected.double() - expected.double().mean())
    distance = torch.linalg.vector_norm(found.double() - expected.double())
    return float(distance / spread), _TOLERANCES.get(expected.dtype, 0.1)
