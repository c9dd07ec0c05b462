"""The door to any vision-language model of `transformers`.

Everything above sees a model through `VLM`, which is made once per model, and through `DecoderInputs`: embeddings,
positions and masks that the model prepared for its text decoder. Nothing here knows a model family by name.

Read in this order: `vlm` (what is known about a model; `unwrap` and `text_decoder` find it), `vocabulary` (what token
ids mean to it), `chat_processor` (images, prompt and response become token ids; `shared_tokenizer` lets threads do this
side by side), `decoder_inputs` (the model prepares its decoder's inputs and is stopped there), `mask_rules` and
`attention_interface` (the mask trick: masks as functions of token indices; `registered_attention` is for models outside
of the library), `path_choice` (what a choice between paths of attention needs), `prompt_attention` (prompts run through
the decoder without their hidden tokens), `output_head` (logits), `exactness` (leaving tokens out is compared with
masking them), `vision_batches` (the images of several examples through the vision tower at once), `image_grids` (where
on its image a token is).
"""

from mmbdhs.vlm.attention_interface import LayerCall, attention_through, not_every_layer
from mmbdhs.vlm.chat_processor import (
    CONTEXT_TOKENS,
    Processor,
    Turn,
    check_messages,
    common_length,
    decode_after,
    encode_prompt,
    encode_turn,
    first_tokens,
    render_prompt,
    render_turn,
    render_turns,
    reworded,
    shared_processor,
    text_rule,
    tokenizer_of,
)
from mmbdhs.vlm.decoder_inputs import (
    DecoderInputs,
    TokenRows,
    VisionOutput,
    capture_decoder_inputs,
    decoder_arguments,
    text_inputs,
)
from mmbdhs.vlm.exactness import (
    agree,
    check_exactness,
    excerpt_inputs,
    require_agreement,
    text_excerpt,
    token_counts,
)
from mmbdhs.vlm.image_grids import Grids, image_grids
from mmbdhs.vlm.mask_rules import CAUSAL, MaskRule, RuleMask, rule_of
from mmbdhs.vlm.output_head import linear_head, logits_of, replaced_forward, step_logits
from mmbdhs.vlm.path_choice import LayerShape, fastest_path, least_seconds, path_override
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.registered_attention import register_attention
from mmbdhs.vlm.text_decoder import check_layers
from mmbdhs.vlm.vision_batches import vision_outputs
from mmbdhs.vlm.vlm import VLM
from mmbdhs.vlm.vocabulary import TextRule, Vocabulary, end_token_ids

__all__ = [
    "CAUSAL",
    "CONTEXT_TOKENS",
    "VLM",
    "DecoderInputs",
    "Grids",
    "LayerCall",
    "LayerShape",
    "MaskRule",
    "Processor",
    "RuleMask",
    "TextRule",
    "TokenRows",
    "Turn",
    "VisionOutput",
    "Vocabulary",
    "agree",
    "attention_through",
    "capture_decoder_inputs",
    "check_exactness",
    "check_layers",
    "check_messages",
    "common_length",
    "decode_after",
    "decoder_arguments",
    "encode_prompt",
    "encode_turn",
    "end_token_ids",
    "excerpt_inputs",
    "fastest_path",
    "first_tokens",
    "image_grids",
    "least_seconds",
    "linear_head",
    "logits_of",
    "not_every_layer",
    "path_override",
    "register_attention",
    "render_prompt",
    "render_turn",
    "render_turns",
    "replaced_forward",
    "require_agreement",
    "reworded",
    "rule_of",
    "run_decoder",
    "shared_processor",
    "step_logits",
    "text_excerpt",
    "text_inputs",
    "text_rule",
    "token_counts",
    "tokenizer_of",
    "vision_outputs",
]
