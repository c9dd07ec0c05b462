"""Log-probabilities of many responses to one prompt, packed into one row."""

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
