"""Bias-driven hallucination sampling for vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbdhs.native.attention import masked_attention, shared_prefix_attention
    from mmbdhs.samples import BDHSConfig, BDHSFailure, BDHSSample, ExampleError, POVIDSample
    from mmbdhs.sampling import bdhs_sample, iter_bdhs_samples, povid_sample
    from mmbdhs.splicing import SentenceSplice
    from mmbdhs.text_decoder import UnsupportedModelError
    from mmbdhs.train_config import TrainConfig
    from mmbdhs.trainer import train

__version__ = "0.1.0"

# Resolved at first use, so that `import mmbdhs` brings in neither transformers nor sentence-transformers.
_HOMES = {
    "BDHSConfig": "samples",
    "BDHSFailure": "samples",
    "BDHSSample": "samples",
    "ExampleError": "samples",
    "POVIDSample": "samples",
    "SentenceSplice": "splicing",
    "TrainConfig": "train_config",
    "UnsupportedModelError": "text_decoder",
    "bdhs_sample": "sampling",
    "iter_bdhs_samples": "sampling",
    "masked_attention": "native.attention",
    "povid_sample": "sampling",
    "shared_prefix_attention": "native.attention",
    "train": "trainer",
}

__all__ = [
    "BDHSConfig",
    "BDHSFailure",
    "BDHSSample",
    "ExampleError",
    "POVIDSample",
    "SentenceSplice",
    "TrainConfig",
    "UnsupportedModelError",
    "bdhs_sample",
    "iter_bdhs_samples",
    "masked_attention",
    "povid_sample",
    "shared_prefix_attention",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
