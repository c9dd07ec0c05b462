"""Whole prompts through the text decoder: every token attends by the model's own mask rule, asked about the indices
that the tokens have in the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmbdhs.native import softmax_attention
from mmbdhs.vlm.attention_interface import LayerCall, decoder_configs, not_every_layer, switched
from mmbdhs.vlm.decoder_inputs import DecoderInputs, decoder_arguments
from mmbdhs.vlm.mask_rules import MaskRule, rule_of
from mmbdhs.vlm.text_decoder import find_text_decoder


def run_decoder(
    model: nn.Module, rows: list[DecoderInputs], cache: DynamicCache | None = None, hidden: Tensor | None = None
) -> Tensor:
    """Hidden states [B, L, hidden] of `rows`, right-padded. Keys and values go to `cache`.

    hidden: bool [B, L], tokens that nobody sees.
    Raises UnsupportedModelError for a decoder whose attention does not come through the interface.
    """
    decoder = find_text_decoder(model)
    attention = PromptAttention(rows, hidden, decoder.config._attn_implementation == "eager")
    with switched(decoder_configs(decoder), attention):
        output = decoder(**decoder_arguments(rows), past_key_values=cache, use_cache=cache is not None)
    layers = len(cache.layers) if cache is not None else 1
    if attention.layers_seen < layers:
        raise not_every_layer(attention.layers_seen, layers)
    return output.last_hidden_state


class PromptAttention:
    """Attention of `rows` over themselves.

    A response, here and in decoding, is text that follows: its tokens see the prompt and what stands before them, and
    no token of the prompt sees them, whatever the rule (PaliGemma's sees its whole prefix both ways)."""

    def __init__(self, rows: list[DecoderInputs], hidden: Tensor | None, eager: bool) -> None:
        self._eager = eager  # which always makes a mask, and leaves nothing to the layers
        self._indices = nn.utils.rnn.pad_sequence([row.indices for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self._indices.device)
        self._present = torch.arange(self._indices.shape[1], device=lengths.device) < lengths[:, None]
        self._prompt = torch.tensor([row.prompt_length for row in rows], device=lengths.device)
        self._plain = hidden is None and len({len(row) for row in rows}) == 1
        if hidden is not None:
            self._present &= ~hidden
        self._seen: dict[MaskRule, Tensor] = {}
        self.layers_seen = 0

    def attend(self, call: LayerCall) -> Tensor:
        self.layers_seen += 1
        operands, device = (call.query, call.key, call.value), call.query.device
        rule = rule_of(call.mask, None if self._eager else call.layer)
        if call.softcap:  # which SDPA does not know
            rows = zip(*operands, self._visible(rule, device), strict=True)
            return torch.stack([softmax_attention(*row, call.scale, call.softcap)[0].transpose(0, 1) for row in rows])
        seen = None if self._plain and rule.causal else self._visible(rule, device)[:, None]
        return sdpa_attention_forward(call.layer, *operands, seen, scaling=call.scale, is_causal=seen is None)[0]

    def _visible(self, rule: MaskRule, device: torch.device) -> Tensor:
        """bool [B, L, L]"""
        if rule not in self._seen:
            query, key = self._indices[:, :, None], self._indices[:, None, :]
            row = torch.arange(len(self._indices), device=query.device)[:, None, None]
            text = key < torch.maximum(self._prompt[:, None, None], query + 1)
            # Padding and hidden tokens see themselves: a softmax over nothing would make NaN of their values.
            own = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
            self._seen[rule] = rule(row, query, key) & text & self._present[:, None, :] | own
        return self._seen[rule].to(device)
