"""Log-probabilities of responses, for any training loop.

`response_logps` computes them for N responses to one image prompt in one packed row, with gradients; its numbers are
those of separate rows, which `separate_logps` computes.

Read in this order: `preferences` (records become token ids), `packed` (the packed row), `packed_attention` (which keys
a response sees), `last_layer` (the last layer runs for the responses alone), `token_logps` and `chunked_head` (from
hidden states to log-probabilities), `padded` (the plain way), `responses` (what both take and return).
"""

from mmbdhs.logprobs.chunked_head import chunked_logps, logps_through
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.padded import separate_logps
from mmbdhs.logprobs.preferences import (
    encode_record,
    encode_responses,
    reference_logps,
    response_text,
    stored_reference_logps,
)
from mmbdhs.logprobs.responses import ResponseLogps

__all__ = [
    "ResponseLogps",
    "chunked_logps",
    "encode_record",
    "encode_responses",
    "logps_through",
    "reference_logps",
    "response_logps",
    "response_text",
    "separate_logps",
    "stored_reference_logps",
]
