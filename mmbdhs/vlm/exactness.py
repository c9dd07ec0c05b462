"""Is leaving hidden tokens out the same as masking them? Every model is asked once, before it is used."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm.decoder_inputs import DecoderInputs, text_inputs
from mmbdhs.vlm.output_head import detect_custom_head, logits_of
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.text_decoder import check_layers
from mmbdhs.vlm.vlm import VLM

_IMAGE_TOKENS, _TEXT_TOKENS = 8, 16  # enough to see a difference, and a small part of the work of one example
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
_MANY_TOKENS = 1 << 24  # where a model does not state its context


@torch.no_grad()
def check_exactness(vlm: VLM, inputs: DecoderInputs, ids: Tensor, tokens: int) -> None:
    """Compare, on a short excerpt of an encoded example, decoder and head with the model's own forward, and dropped
    with masked image tokens. Each model is checked once, and again for sequences longer than any before.

    inputs: of the whole example.
    ids: int64 [L], the example's token ids.
    tokens: how many tokens the decoder will take in one row at most. A model may count the tokens that came before;
        it passes as far as the count does not matter.

    Raises UnsupportedModelError with the measured difference.
    """
    if vlm.exact_tokens >= tokens:
        return
    check_layers(vlm.decoder)
    excerpt = text_excerpt(inputs, ids)
    with vlm.evaluation_mode():
        whole = _own_logits(vlm, excerpt)
        text = excerpt_inputs(vlm, inputs, excerpt)
        _compare_with_own_forward(vlm, text, whole)
        require_agreement(vlm, "leaving image tokens out against masking them", *_dropped_and_masked(vlm, inputs))
        counted = _counted_tokens(vlm, text, tokens)
    # Where something was not finite, the comparison told nothing: the next example is another chance.
    vlm.exact_tokens = counted if bool(whole.isfinite().all()) else -1


def text_excerpt(inputs: DecoderInputs, ids: Tensor) -> Tensor:
    """The last text tokens of an example, which follow its last image token."""
    return ids[max(int(inputs.image_positions[-1]) + 1, len(ids) - _TEXT_TOKENS) :]


def excerpt_inputs(vlm: VLM, inputs: DecoderInputs, excerpt: Tensor) -> DecoderInputs:
    """The excerpt as inputs of its own; all but its last token are the prompt."""
    text = text_inputs(vlm, excerpt)
    positions = text.indices.expand(len(inputs.positions), -1)
    length = max(len(excerpt) - 1, 1)
    return replace(text, positions=positions, positions_2d=inputs.positions_2d, prompt_length=length)


def token_counts(vlm: VLM, tokens: int) -> tuple[int, int]:
    """The counts at which a model is checked: all that its context holds, or else only what is needed now."""
    return max(int(min(vlm.context_length, _MANY_TOKENS)), tokens), tokens


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two sets of logits differ by no more than rounding."""
    return _difference(found, expected) <= _tolerance(expected)


def require_agreement(vlm: VLM, what: str, found: Tensor, expected: Tensor) -> None:
    """Raises UnsupportedModelError that says what differs and by how much; NaN tells nothing and passes."""
    difference, tolerance = _difference(found, expected), _tolerance(expected)
    if difference > tolerance:
        raise UnsupportedModelError(
            f"model: {vlm.name} differs in {what}: by {difference:.2g} of the logits' spread, where "
            f"rounding makes at most {tolerance:g}"
        )


def _own_logits(vlm: VLM, excerpt: Tensor) -> Tensor:
    """Logits [V] after plain text by the model's own forward."""
    try:
        mask = torch.ones_like(excerpt[None])
        return vlm.model(input_ids=excerpt[None], attention_mask=mask, use_cache=False).logits[0, -1]
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"model: {vlm.name} must run on text alone, to be compared with: {error}"
        ) from error


def _compare_with_own_forward(vlm: VLM, text: DecoderInputs, whole: Tensor) -> None:
    # A decoder that takes more than embeddings for plain text takes more for generated tokens too.
    vlm.custom_step = bool(text.extra_kwargs)
    hidden = run_decoder(vlm, [replace(text, prompt_length=len(text))])[:, -1]
    detect_custom_head(vlm, hidden, lambda logits: agree(logits[0], whole))
    require_agreement(vlm, "its decoder and output head against its own forward", logits_of(vlm, hidden)[0], whole)


def _dropped_and_masked(vlm: VLM, inputs: DecoderInputs) -> Tensor:
    """Logits [2, V] after an excerpt in which every other image token is dropped, or masked."""
    text = torch.arange(max(len(inputs) - _TEXT_TOKENS, 0), len(inputs))
    excerpt = inputs.select(torch.cat([inputs.image_positions[:_IMAGE_TOKENS], text]).unique())
    hidden = torch.zeros(2, len(excerpt), dtype=torch.bool, device=excerpt.embeds.device)
    hidden[1, excerpt.image_positions[::2]] = True
    rest = excerpt.select((~hidden[1]).nonzero().flatten())
    states = run_decoder(vlm, [rest, excerpt], hidden=hidden)
    return logits_of(vlm, torch.stack([states[0, len(rest) - 1], states[1, -1]]))


class _CountingCache(DynamicCache):
    """An empty cache that claims to hold many tokens. The decoder must go by what it sees instead."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


def _counted_tokens(vlm: VLM, text: DecoderInputs, tokens: int) -> int:
    """How many tokens may come before without changing the logits; -1 if these are not finite."""

    def logits(cache: DynamicCache) -> Tensor:
        return logits_of(vlm, run_decoder(vlm, [text], cache)[:, -1])[0]

    expected = logits(DynamicCache())
    for count in token_counts(vlm, tokens):
        if agree(found := logits(_CountingCache(count)), expected):
            return count
    require_agreement(
        vlm, f"its decoder after {tokens} tokens against the same as if none came before", found, expected
    )
    return -1


def _difference(found: Tensor, expected: Tensor) -> float:
    """Distance in units of the expected logits' spread."""
    spread = torch.linalg.vector_norm(expected.double() - expected.double().mean())
    return float(torch.linalg.vector_norm(found.double() - expected.double()) / spread)


def _tolerance(logits: Tensor) -> float:
    """The largest difference that rounding makes in this dtype."""
    return _TOLERANCES.get(logits.dtype, 0.1)
