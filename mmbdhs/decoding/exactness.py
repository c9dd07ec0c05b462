"""Is decoding a token the same as computing it with the whole text at once? Every model is asked before it decodes."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbdhs.decoding.branch import Branch
from mmbdhs.decoding.engine import DecodingEngine, positions_after
from mmbdhs.decoding.kv_cache import Extents
from mmbdhs.vlm import (
    VLM,
    DecoderInputs,
    agree,
    check_exactness,
    excerpt_inputs,
    logits_of,
    require_agreement,
    run_decoder,
    text_excerpt,
    token_counts,
)


@torch.no_grad()
def check_decoding(vlm: VLM, inputs: DecoderInputs, ids: Tensor, tokens: int) -> None:
    """`check_exactness`, and a comparison of one decoded token with the same token computed with the text before it.

    Each model is checked once, and again for sequences longer than any before. Arguments and errors are those of
    `check_exactness`; `tokens` includes the tokens that will be generated.
    """
    check_exactness(vlm, inputs, ids, tokens)
    if vlm.decoded_tokens >= tokens:
        return
    excerpt = text_excerpt(inputs, ids)
    with vlm.evaluation_mode():
        text = excerpt_inputs(vlm, inputs, excerpt)
        at_once = logits_of(vlm, run_decoder(vlm, [text])[:, -1])[0]
        for count in token_counts(vlm, tokens):
            decoded = _decoded_logits(vlm, text, excerpt, count)
            if agree(decoded, at_once):
                break
    require_agreement(vlm, "decoding a token against doing so at once", decoded, at_once)
    finite = bool(at_once.isfinite().all() and decoded.isfinite().all())
    vlm.decoded_tokens = count if finite else -1


def _decoded_logits(vlm: VLM, text: DecoderInputs, ids: Tensor, tokens: int) -> Tensor:
    """Logits [V] after the text, decoding its last token as a forced token of a branch; NaN for a model that makes NaN
    of the tokens before. The decoder is told that `tokens` came before, and must go by what it sees instead."""
    found: list[Tensor] = []

    def choose(logits: Tensor, draws: Tensor | None) -> Tensor:
        found.append(logits[0])
        return logits.argmax(dim=-1)

    prefix = text.prompt_length
    engine = DecodingEngine(vlm, choose)
    prompt = text.select(torch.arange(prefix))
    (result,) = engine.prefill([prompt])
    if result is None or prefix == len(ids):
        return engine.logits(text.embeds[-1:] * torch.nan if result is None else result[1][-1:])[0]
    engine.cache.reserve(Extents(1, len(ids), prefix))
    engine.cache.seen_tokens = tokens
    first_index, *start = positions_after(prompt)[-1]
    engine.fill_slots(0, [Branch(prefix, 1, ids[prefix:].tolist(), start=start, first_index=first_index)])
    engine.step(1, prefix)
    return found[0]
