"""Bias-driven hallucination sampling for vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbdhs.native.attention import masked_attention, shared_prefix_attention
    from mmbdhs.sampling.bdhs import bdhs_sample, iter_bdhs_samples, povid_sample
    from mmbdhs.sampling.results import BDHSConfig, BDHSFailure, BDHSSample, ExampleError, POVIDSample
    from mmbdhs.sampling.splicing import SentenceSplice
    from mmbdhs.training.config import TrainConfig
    from mmbdhs.training.trainer import train
    from mmbdhs.vlm.text_decoder import UnsupportedModelError

__version__ = "0.1.0"

# Resolved at first use, so that `import mmbdhs` brings in neither transformers nor sentence-transformers.
_HOMES = {
    "BDHSConfig": "sampling.results",
    "BDHSFailure": "sampling.results",
    "BDHSSample": "sampling.results",
    "ExampleError": "sampling.results",
    "POVIDSample": "sampling.results",
    "SentenceSplice": "sampling.splicing",
    "TrainConfig": "training.config",
    "UnsupportedModelError": "vlm.text_decoder",
    "bdhs_sample": "sampling.bdhs",
    "iter_bdhs_samples": "sampling.bdhs",
    "masked_attention": "native.attention",
    "povid_sample": "sampling.bdhs",
    "shared_prefix_attention": "native.attention",
    "train": "training.trainer",
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
