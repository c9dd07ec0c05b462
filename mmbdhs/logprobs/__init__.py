"""Log-probabilities of responses, for any training loop.

`response_logps` computes them for N responses to one image prompt in one packed row, with gradients; its numbers are
those of separate rows, which `separate_logps` computes.

Read in this order: `preferences` (records become token ids), `packed` (the packed row), `packed_attention` (which keys
a response sees; `flex_attention` says it to FlexAttention, and `autotune` chooses between that and SDPA), `last_layer`
(the last layer runs for the responses alone), `token_logps` and `chunked_head` (from hidden states to
log-probabilities), `padded` (the plain way), `responses` (what both take and return).
"""

from mmbdhs.logprobs.chunked_head import chunked_logps, logps_through
from mmbdhs.logprobs.packed import last_states, predicted_ids, response_logps, scored_states, scored_tokens
from mmbdhs.logprobs.padded import separate_logps
from mmbdhs.logprobs.preferences import (
    EncodedResponses,
    encode_chat,
    encode_record,
    encode_responses,
    reference_logps,
    stored_reference_logps,
)
from mmbdhs.logprobs.responses import ResponseLogps, fit_context
from mmbdhs.logprobs.token_logps import TokenStatistics

__all__ = [
    "EncodedResponses",
    "ResponseLogps",
    "TokenStatistics",
    "chunked_logps",
    "encode_chat",
    "encode_record",
    "encode_responses",
    "fit_context",
    "last_states",
    "logps_through",
    "predicted_ids",
    "reference_logps",
    "response_logps",
    "scored_states",
    "scored_tokens",
    "separate_logps",
    "stored_reference_logps",
]
