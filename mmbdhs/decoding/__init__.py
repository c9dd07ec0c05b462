"""Many continuations over shared prefixes, decoded together."""

from mmbdhs.decoding.branch_pool import Branch, BranchPool
from mmbdhs.decoding.engine import Decoding
from mmbdhs.decoding.exactness import probe
from mmbdhs.decoding.token_sampling import TokenChooser, end_token_ids, token_chooser, vision_token_ids

__all__ = [
    "Branch",
    "BranchPool",
    "Decoding",
    "TokenChooser",
    "end_token_ids",
    "probe",
    "token_chooser",
    "vision_token_ids",
]
