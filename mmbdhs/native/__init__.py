"""Native ops: checked and registered in `ops` and `attention`, with a plain twin of each in `reference`."""

from mmbdhs.native import backend, checks, ops
from mmbdhs.native.attention import masked_attention, shared_prefix_attention
from mmbdhs.native.plain_attention import softmax_attention
from mmbdhs.native.reference import ADDRESS_LAYOUT, COUNTERPARTS
from mmbdhs.native.sentence_rule import BREAKS, STOPS

__all__ = [
    "ADDRESS_LAYOUT",
    "BREAKS",
    "COUNTERPARTS",
    "STOPS",
    "backend",
    "checks",
    "masked_attention",
    "ops",
    "shared_prefix_attention",
    "softmax_attention",
]
