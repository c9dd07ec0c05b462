"""The door to any vision-language model of `transformers`."""

from mmbdhs.vlm.attention_interface import LayerCall, decoder_configs, mask_configs, not_every_layer, switched
from mmbdhs.vlm.chat_processor import (
    CONTEXT_TOKENS,
    Turn,
    decode_after,
    encode,
    first_tokens,
    render_turn,
    reworded,
    tokenizer_of,
)
from mmbdhs.vlm.decoder_inputs import DecoderInputs, TokenRows, capture_decoder_inputs, decoder_arguments, text_inputs
from mmbdhs.vlm.mask_rules import CAUSAL, MaskRule, RuleMask, rule_of
from mmbdhs.vlm.output_head import OutputHead, running_instead, settle_head, settle_steps, step_logits
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.text_decoder import (
    check_layers,
    context_length,
    evaluating,
    find_text_decoder,
    image_token_id,
    input_device,
    runnable,
    unwrapped,
)

__all__ = [
    "CAUSAL",
    "CONTEXT_TOKENS",
    "DecoderInputs",
    "LayerCall",
    "MaskRule",
    "OutputHead",
    "RuleMask",
    "TokenRows",
    "Turn",
    "capture_decoder_inputs",
    "check_layers",
    "context_length",
    "decode_after",
    "decoder_arguments",
    "decoder_configs",
    "encode",
    "evaluating",
    "find_text_decoder",
    "first_tokens",
    "image_token_id",
    "input_device",
    "mask_configs",
    "not_every_layer",
    "render_turn",
    "reworded",
    "rule_of",
    "run_decoder",
    "runnable",
    "running_instead",
    "settle_head",
    "settle_steps",
    "step_logits",
    "switched",
    "text_inputs",
    "tokenizer_of",
    "unwrapped",
]
