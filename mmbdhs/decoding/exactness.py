"""Is leaving hidden tokens out the same as masking them? Asked of the model at hand, at its first use."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmbdhs.decoding.engine import Decoding
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm import (
    DecoderInputs,
    OutputHead,
    check_layers,
    context_length,
    evaluating,
    run_decoder,
    settle_head,
    settle_steps,
    text_inputs,
)

_IMAGE_TOKENS, _TEXT_TOKENS = 8, 16  # enough to tell, and a small part of one pair's work
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}

_MANY = 1 << 24  # tokens, where a model says nothing of its context

_SOUND: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # up to how many tokens


@torch.no_grad()
def probe(model: nn.Module, inputs: DecoderInputs, ids: Tensor, tokens: int) -> None:
    """Compare the decoder and head with the model's own forward, dropped with masked, and decoding with doing it at
    once, on a short excerpt of an encoded example; once for each model. Raises UnsupportedModelError with the measured
    difference.

    inputs: of the whole example. ids: its token ids, int64 [L]. tokens: how many it will have at most, generated ones
        included. A model may count how many came before: then it passes as far as the count does not matter, and is
        probed again for sequences longer than any before.
    """
    if _SOUND.get(model, -1) >= tokens:
        return
    check_layers(model)
    with evaluating(model):
        _SOUND[model] = _compare(model, inputs, ids, tokens)


def _compare(model: nn.Module, inputs: DecoderInputs, ids: Tensor, tokens: int) -> int:
    """Returns how many tokens the model is sound for, -1 if what it made was not finite."""
    ids = ids[max(int(inputs.image_positions[-1]) + 1, len(ids) - _TEXT_TOKENS) :]
    text, whole = _text_and_logits(model, inputs, ids)
    continued = replace(text, prompt_length=max(len(ids) - 1, 1))
    hidden = run_decoder(model, [text, continued])[:, -1]
    settle_steps(model, text)
    settle_head(model, hidden[:1], lambda logits: _difference(logits[0], whole) <= _tolerance(whole))
    own, at_once = OutputHead(model)(hidden)
    _require(model, "its decoder and output head against its own forward", own, whole)
    _require(model, "leaving image tokens out against masking them", *_dropped_and_masked(model, inputs))
    for count in (max(int(min(context_length(model), _MANY)), tokens), tokens):
        decoded = _decoded_logits(model, continued, ids, count)
        if _difference(decoded, at_once) <= _tolerance(at_once):
            break
    _require(model, "decoding a token against doing so at once", decoded, at_once)
    return count if all(logits.isfinite().all() for logits in (own, whole, decoded)) else -1


def _require(model: nn.Module, what: str, found: Tensor, expected: Tensor) -> None:
    difference, tolerance = _difference(found, expected), _tolerance(expected)
    if difference > tolerance:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} differs in {what}: by {difference:.2g} of the logits' spread, where "
            f"rounding makes at most {tolerance:g}"
        )


def _dropped_and_masked(model: nn.Module, inputs: DecoderInputs) -> Tensor:
    """Logits [2, V] after the excerpt, with every other image token hidden either way."""
    text = torch.arange(max(len(inputs) - _TEXT_TOKENS, 0), len(inputs))
    excerpt = inputs.select(torch.cat([inputs.image_positions[:_IMAGE_TOKENS], text]).unique())
    hidden = torch.zeros(2, len(excerpt), dtype=torch.bool, device=excerpt.embeds.device)
    hidden[1, excerpt.image_positions[::2]] = True
    rest = excerpt.select((~hidden[1]).nonzero().flatten())
    states = run_decoder(model, [rest, excerpt], hidden=hidden)
    return OutputHead(model)(torch.stack([states[0, len(rest) - 1], states[1, -1]]))


def _text_and_logits(model: nn.Module, inputs: DecoderInputs, ids: Tensor) -> tuple[DecoderInputs, Tensor]:
    """Plain text as inputs of its own, and the logits [V] after it by the model's own forward."""
    try:
        text = text_inputs(model, ids)
        whole = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, -1]
    except (TypeError, ValueError) as error:
        name = type(model).__name__
        raise UnsupportedModelError(f"model: {name} must run on text alone, to be compared with: {error}") from error
    return replace(text, positions=text.indices.expand(len(inputs.positions), -1), flat=inputs.flat), whole


def _decoded_logits(model: nn.Module, text: DecoderInputs, ids: Tensor, tokens: int) -> Tensor:
    """Logits [V] after the text, whose last token is decoded as a branch's forced token is; NaN for a model that makes
    NaN of the others. The decoder is told that `tokens` came before, and must go by what it sees instead."""
    found: list[Tensor] = []

    def choose(logits: Tensor, draws: Tensor | None) -> Tensor:
        found.append(logits[0])
        return logits.argmax(dim=-1)

    prefix, one = text.prompt_length, torch.ones(1)
    decoding = Decoding(model, choose)
    (result,) = decoding.prefill([text.select(torch.arange(prefix))])
    if result is None or prefix == len(ids):
        return decoding.head(text.embeds[-1:] * torch.nan if result is None else result[1][-1:])[0]
    decoding.stores.reserve(1, len(ids))
    decoding.stores.seen_tokens = tokens
    decoding.slots.seat(
        0,
        tokens=nn.functional.pad(ids[None, prefix:], (0, 1)),
        uniforms=torch.empty(1, 0),
        start=text.positions[None, :, prefix - 1] + 1,
        first_index=text.indices[prefix - 1 : prefix] + 1,
        length=0 * one,
        forced=one,
        last=one,
        prefix_count=prefix * one,
        example=0 * one,
    )
    decoding.step(1, prefix)
    return found[0]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Distance in units of the expected logits' spread."""
    spread = torch.linalg.vector_norm(expected.double() - expected.double().mean())
    return float(torch.linalg.vector_norm(found.double() - expected.double()) / spread)


def _tolerance(logits: Tensor) -> float:
    """What rounding may make of it."""
    return _TOLERANCES.get(logits.dtype, 0.1)
