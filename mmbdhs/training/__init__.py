"""The reference trainer."""

from mmbdhs.training.annotators import (
    Annotator,
    Comparison,
    EndpointAnnotator,
    LikelihoodAnnotator,
    ModelAnnotator,
    parse_verdict,
)
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.objectives import Objective, pairwise, supervised
from mmbdhs.training.pair_sources import (
    Candidates,
    Distorted,
    Mixed,
    OnlineBDHS,
    OnlinePairs,
    PairSource,
    Stored,
    Supervised,
    Visit,
)
from mmbdhs.training.trainer import TrainResult, train

__all__ = [
    "Annotator",
    "Candidates",
    "Comparison",
    "Distorted",
    "EndpointAnnotator",
    "LikelihoodAnnotator",
    "Mixed",
    "ModelAnnotator",
    "Objective",
    "OnlineBDHS",
    "OnlinePairs",
    "PairSource",
    "Stored",
    "Supervised",
    "TrainConfig",
    "TrainResult",
    "Visit",
    "pairwise",
    "parse_verdict",
    "supervised",
    "train",
]
