"""Bias-driven hallucination sampling for vision-language models.

`sample_dataset` makes rejected responses for a data set and `bdhs_sample` for lists in memory, `mmbdhs.losses` and
`mmbdhs.logprobs` serve any training loop, `train` is the reference trainer, and `mmbdhs.evaluation` scores the result.
Names resolve at first use, so `import mmbdhs` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbdhs.data import ChatPrompt as ChatPrompt
    from mmbdhs.errors import ExampleError as ExampleError
    from mmbdhs.errors import UnsupportedModelError as UnsupportedModelError
    from mmbdhs.native import masked_attention as masked_attention
    from mmbdhs.native import shared_prefix_attention as shared_prefix_attention
    from mmbdhs.pairs import DatasetConfig as DatasetConfig
    from mmbdhs.pairs import sample_dataset as sample_dataset
    from mmbdhs.sampling import BDHSConfig as BDHSConfig
    from mmbdhs.sampling import BDHSFailure as BDHSFailure
    from mmbdhs.sampling import BDHSSample as BDHSSample
    from mmbdhs.sampling import POVIDSample as POVIDSample
    from mmbdhs.sampling import SampledResponse as SampledResponse
    from mmbdhs.sampling import SamplingConfig as SamplingConfig
    from mmbdhs.sampling import SentenceSplice as SentenceSplice
    from mmbdhs.sampling import bdhs_sample as bdhs_sample
    from mmbdhs.sampling import iter_bdhs_samples as iter_bdhs_samples
    from mmbdhs.sampling import iter_responses as iter_responses
    from mmbdhs.sampling import povid_sample as povid_sample
    from mmbdhs.sampling import sample_responses as sample_responses
    from mmbdhs.training import TrainConfig as TrainConfig
    from mmbdhs.training import train as train
    from mmbdhs.vlm import register_attention as register_attention

__version__ = "0.1.0"

_WINGS = {
    "data": ["ChatPrompt"],
    "errors": ["ExampleError", "UnsupportedModelError"],
    "native": ["masked_attention", "shared_prefix_attention"],
    "pairs": ["DatasetConfig", "sample_dataset"],
    "sampling": [
        "BDHSConfig",
        "BDHSFailure",
        "BDHSSample",
        "POVIDSample",
        "SampledResponse",
        "SamplingConfig",
        "SentenceSplice",
        "bdhs_sample",
        "iter_bdhs_samples",
        "iter_responses",
        "povid_sample",
        "sample_responses",
    ],
    "training": ["TrainConfig", "train"],
    "vlm": ["register_attention"],
}
_HOMES = {name: wing for wing, names in _WINGS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
