"""Whole prompts through the text decoder, with any of their tokens left out.

Every token attends by the model's own mask rule, evaluated at the indices of the whole sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmbdhs.native import softmax_attention
from mmbdhs.vlm.attention_interface import LayerCall, attention_through, not_every_layer
from mmbdhs.vlm.decoder_inputs import DecoderInputs, decoder_arguments
from mmbdhs.vlm.mask_rules import MaskRule, rule_of
from mmbdhs.vlm.vlm import VLM


def run_decoder(
    vlm: VLM, rows: list[DecoderInputs], cache: DynamicCache | None = None, hidden: Tensor | None = None
) -> Tensor:
    """Hidden states [B, L, hidden] of `rows`, right-padded.

    cache: takes the keys and values of every layer.
    hidden: bool [B, L], tokens that no other token sees.

    Raises UnsupportedModelError for a decoder whose layers do not attend through the interface.
    """
    attention = PromptAttention(rows, hidden, vlm.decoder.config._attn_implementation == "eager")
    with attention_through(attention, vlm.decoder_configs):
        output = vlm.decoder(**decoder_arguments(rows), past_key_values=cache, use_cache=cache is not None)
    layers = len(cache.layers) if cache is not None else 1
    if attention.layers_seen < layers:
        raise not_every_layer(attention.layers_seen, layers)
    return output.last_hidden_state


class PromptAttention:
    """Attention of `rows` over themselves.

    A response is text that follows the prompt, here as in decoding: its tokens see the prompt and what comes before
    them, and no token of the prompt sees them, whatever the rule says (PaliGemma's sees its whole prefix both ways).

    rows: prompts, or prompts with a response.
    hidden: bool [B, L], tokens that no other token sees; None for none.
    eager: whether the model's own attention always writes its mask, so that layers have nothing to decide.
    """

    def __init__(self, rows: list[DecoderInputs], hidden: Tensor | None, eager: bool) -> None:
        self._eager = eager
        self._indices = nn.utils.rnn.pad_sequence([row.indices for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self._indices.device)
        self._present = torch.arange(self._indices.shape[1], device=lengths.device) < lengths[:, None]
        self._prompt = torch.tensor([row.prompt_length for row in rows], device=lengths.device)
        self._nothing_hidden = hidden is None and len({len(row) for row in rows}) == 1
        if hidden is not None:
            self._present &= ~hidden
        self._masks: dict[MaskRule, Tensor] = {}
        self.layers_seen = 0

    def attend(self, call: LayerCall) -> Tensor:
        self.layers_seen += 1
        operands, device = (call.query, call.key, call.value), call.query.device
        rule = rule_of(call.mask, None if self._eager else call.layer)
        if call.softcap:  # SDPA has no soft-cap
            rows = zip(*operands, self._mask(rule, device), strict=True)
            return torch.stack([softmax_attention(*row, call.scale, call.softcap)[0].transpose(0, 1) for row in rows])
        mask = None if self._nothing_hidden and rule.causal else self._mask(rule, device)[:, None]
        return sdpa_attention_forward(call.layer, *operands, mask, scaling=call.scale, is_causal=mask is None)[0]

    def _mask(self, rule: MaskRule, device: torch.device) -> Tensor:
        """Which keys each query sees: bool [B, L, L]."""
        if rule not in self._masks:
            query, key = self._indices[:, :, None], self._indices[:, None, :]
            row = torch.arange(len(self._indices), device=query.device)[:, None, None]
            before = key < torch.maximum(self._prompt[:, None, None], query + 1)
            # Padding and hidden tokens see themselves: a softmax over no key would turn their values into NaN.
            itself = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
            self._masks[rule] = rule(row, query, key) & before & self._present[:, None, :] | itself
        return self._masks[rule].to(device)
