"""The native wing: ops in C++ and CUDA, each with a definition in Python that runs without the binary.

It draws addressed random numbers and image masks, splits and splices texts, and attends to shared prefixes and to
sequences with hidden keys. To read it, start with
1. `ops` and `attention`: the ops, what they take and return, and how they check it;
2. `reference`, with `sentence_rule` (its tables are in `sentence_tables`) and `plain_attention`: the definition of
   every op;
3. `binding`: the same functions, run by the compiled extension (csrc/bindings.cpp is its other side);
4. `backend`: which of the two runs, and why;
5. `checks`, `operands`, `registry`: argument checks, named argument lists, registration with `torch.library`.
"""

from mmbdhs.native import attention, backend, checks, ops
from mmbdhs.native.attention import masked_attention, shared_prefix_attention
from mmbdhs.native.operands import Masked, SharedPrefix, SpliceDraws, Splices
from mmbdhs.native.plain_attention import sdpa_attention, softmax_attention
from mmbdhs.native.reference import ADDRESS_LAYOUT
from mmbdhs.native.sentence_tables import BREAKS, COUNTERPARTS, STOPS

__all__ = [
    "ADDRESS_LAYOUT",
    "BREAKS",
    "COUNTERPARTS",
    "STOPS",
    "Masked",
    "SharedPrefix",
    "SpliceDraws",
    "Splices",
    "attention",
    "backend",
    "checks",
    "masked_attention",
    "ops",
    "sdpa_attention",
    "shared_prefix_attention",
    "softmax_attention",
]
