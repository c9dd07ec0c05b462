"""Shared-prefix decoding: many continuations of many prompts, decoded together.

A prompt is prefilled once and its keys are stored once, however many branches continue it; live branches run one token
each in one batch. Attention reads a branch's own keys and the part of its prompt that it may see, and nothing else.

Read in this order: `branch` (one continuation), `branch_pool` (which branches run, start and end), `engine` (one token
of all of them), `kv_cache` (where their keys are), `attention` and `attention_paths` (how they are read), `autotune`
(which path is faster), `steps` and `cuda_graphs` (steps replayed on a GPU), `kept` (what a model keeps of them between
two calls), `token_sampling` (the next token), `exactness` (decoding is compared with computing everything at once).
"""

from mmbdhs.decoding.branch import Branch
from mmbdhs.decoding.branch_pool import BranchPool
from mmbdhs.decoding.engine import DecodingEngine
from mmbdhs.decoding.exactness import check_decoding
from mmbdhs.decoding.kept import release
from mmbdhs.decoding.token_sampling import TokenChooser, token_chooser, vision_token_ids

__all__ = [
    "Branch",
    "BranchPool",
    "DecodingEngine",
    "TokenChooser",
    "check_decoding",
    "release",
    "token_chooser",
    "vision_token_ids",
]
