"""Is leaving hidden tokens out the same as masking them? Asked of the model at hand, at its first use."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmbdhs.decoder_inputs import DecoderInputs, text_inputs
from mmbdhs.decoding import Decoding
from mmbdhs.model_forward import OutputHead, settle_head, settle_steps
from mmbdhs.prompt_attention import run_decoder
from mmbdhs.text_decoder import UnsupportedModelError

_IMAGE_TOKENS, _TEXT_TOKENS, _DECODED_TOKENS = 16, 32, 2  # enough to tell, and a small part of one pair's work
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}

_SOUND: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # up to how many tokens


@torch.no_grad()
def probe(model: nn.Module, inputs: DecoderInputs, ids: Tensor, tokens: int) -> None:
    """Compare dropped with masked, and decoder, head and decoding with the model's own forward, on a short excerpt of
    an encoded example; once for each model, and again for sequences longer than any before. Raises
    UnsupportedModelError with the measured difference.

    inputs: of the whole example. ids: its token ids, int64 [L]. tokens: how many it will have at most, generated ones
        included.
    """
    if _SOUND.get(model, -1) >= tokens:
        return
    text, text_ids, whole = _text_and_logits(model, inputs, ids)
    prefix = max(len(text) - _DECODED_TOKENS, 1)
    continued = replace(text, prompt_length=prefix)
    comparisons = {
        "its decoder and output head against its own forward": (_last_logits(model, text), whole),
        "leaving image tokens out against masking them": _dropped_and_masked(model, inputs),
        "decoding token by token against doing so at once": (
            _decoded_logits(model, continued, text_ids, tokens),
            _last_logits(model, continued),
        ),
    }
    differences = {what: _difference(*logits) for what, logits in comparisons.items()}
    for what, (difference, tolerance) in differences.items():
        if difference > tolerance:
            raise UnsupportedModelError(
                f"model: {type(model).__name__} differs in {what}: by {difference:.2g} of the logits' spread, where "
                f"rounding makes at most {tolerance:g}"
            )
    if all(math.isfinite(difference) for difference, _ in differences.values()):
        _SOUND[model] = tokens


def _dropped_and_masked(model: nn.Module, inputs: DecoderInputs) -> tuple[Tensor, Tensor]:
    """Logits after the excerpt, with every other image token hidden either way."""
    text = torch.arange(max(len(inputs) - _TEXT_TOKENS, 0), len(inputs))
    excerpt = inputs.select(torch.cat([inputs.image_positions[:_IMAGE_TOKENS], text]).unique())
    hidden = torch.zeros(1, len(excerpt), dtype=torch.bool, device=excerpt.embeds.device)
    hidden[:, excerpt.image_positions[::2]] = True
    rest = excerpt.select((~hidden[0]).nonzero().flatten())
    return _last_logits(model, rest), _last_logits(model, excerpt, hidden)


def _text_and_logits(model: nn.Module, inputs: DecoderInputs, ids: Tensor) -> tuple[DecoderInputs, Tensor, Tensor]:
    """The last text tokens as inputs of their own, their ids, and the whole model's logits after them."""
    ids = ids[max(int(inputs.image_positions[-1]) + 1, len(ids) - _TEXT_TOKENS) :]
    try:
        text = text_inputs(model, ids)
        whole = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, -1]
    except (TypeError, ValueError, RuntimeError) as error:
        name = type(model).__name__
        raise UnsupportedModelError(f"model: {name} must run on text alone, to be compared with: {error}") from error
    text = replace(text, positions=text.indices.expand(len(inputs.positions), -1), flat=inputs.flat)
    settle_steps(model, text)
    hidden = run_decoder(model, [text])[0, -1:]
    settle_head(model, hidden, lambda logits: operator.le(*_difference(logits[0], whole)))
    return text, ids, whole


def _decoded_logits(model: nn.Module, text: DecoderInputs, ids: Tensor, tokens: int) -> Tensor:
    """Logits after the text, whose last tokens are decoded as a branch's forced tokens are; NaN for a model that
    makes NaN of the others. The decoder is told that `tokens` came before, and must go by what it sees instead."""
    found: list[Tensor] = []

    def choose(logits: Tensor, draws: Tensor | None) -> Tensor:
        found.append(logits[0])
        return logits.argmax(dim=-1)

    prefix = text.prompt_length
    count, decoding = torch.tensor([len(ids) - prefix]), Decoding(model, choose)
    (result,) = decoding.prefill([text.select(torch.arange(prefix))])
    if result is None:
        return torch.full_like(decoding.head(text.embeds[-1:])[0], torch.nan)
    decoding.stores.reserve(1, len(ids))
    decoding.stores.seen_tokens = tokens
    decoding.slots.seat(
        0,
        tokens=nn.functional.pad(ids[None, prefix:], (0, 1)),
        uniforms=torch.empty(1, 0),
        start=text.positions[None, :, prefix - 1] + 1,
        first_index=text.indices[prefix - 1 : prefix] + 1,
        length=torch.zeros(1),
        forced=count,
        last=count,
        prefix_count=torch.tensor([prefix]),
        example=torch.zeros(1),
    )
    found.append(decoding.head(result[1][-1:])[0])
    for _ in range(prefix, len(ids)):
        decoding.step(1, prefix)
    return found[-1]


def _last_logits(model: nn.Module, inputs: DecoderInputs, hidden: Tensor | None = None) -> Tensor:
    return OutputHead(model)(run_decoder(model, [inputs], hidden=hidden)[0, -1:])[0]


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Distance in units of the expected logits' spread, and what rounding may make of it."""
    spread = torch.linalg.vector_norm(expected.double() - expected.double().mean())
    distance = torch.linalg.vector_norm(found.double() - expected.double())
    return float(distance / spread), _TOLERANCES.get(expected.dtype, 0.1)
