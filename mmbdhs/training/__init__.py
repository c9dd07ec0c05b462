"""Training: align a vision-language model with pairs that are stored, or sampled from the model as it learns.

`train` needs three parts, and any of them may be your own callable: a *source* that makes the candidate responses of
an example, an *objective* that makes a loss of their log-probabilities, and for Online-DPO an *annotator* that ranks
two responses. Reinforcement learning takes `RolloutSource` with a reward, such as a `RewardModel`, and `rloo` or `ppo`.
To read the code, begin with `config` (all settings), `pair_sources` and `objectives`, then follow a step through
`trainer`, `batches` (which examples it takes, read ahead), `learner` and `encoding`. `part_checks` looks at what
`train` is given, `preparation` makes model and devices ready, `trainable` chooses the trained parameters, `sharding`
distributes the model over processes (FSDP2), and `schedule` makes the learning rates. `rollouts`, `reinforcement`,
`reward_model` and `heads` are reinforcement learning. `checkpoints` and `log` write files, `hub` the model card,
`run_folder` keeps a folder to one run, which `run_identity` describes. `annotators` holds judges, `annotator_accuracy`
measures them, and `command`, with `command_parts`, is `mmbdhs train`.
"""

from mmbdhs.training.annotator_accuracy import AnnotatorAccuracy, annotator_accuracy
from mmbdhs.training.annotators import (
    Annotator,
    Comparison,
    EndpointAnnotator,
    LikelihoodAnnotator,
    ModelAnnotator,
    parse_verdict,
)
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.learner import KLBoundError, NonFiniteLossError
from mmbdhs.training.objectives import Objective, pairwise, supervised
from mmbdhs.training.pair_sources import (
    Candidates,
    DistortedSource,
    MixedSource,
    OnlineBDHSSource,
    OnlinePairsSource,
    PairSource,
    RewardError,
    StoredSource,
    SupervisedSource,
    TrainingExample,
    columns_of,
    gives_rewards,
)
from mmbdhs.training.reinforcement import ppo, rloo
from mmbdhs.training.reward_model import RewardAccuracy, RewardModel, reward_accuracy, reward_modelling
from mmbdhs.training.rollouts import (
    AnnotatorReward,
    Reward,
    RewardStatistics,
    Rollout,
    RolloutSource,
    reward_statistics,
)
from mmbdhs.training.trainer import TrainResult, train

__all__ = [
    "Annotator",
    "AnnotatorAccuracy",
    "AnnotatorReward",
    "Candidates",
    "Comparison",
    "DistortedSource",
    "EndpointAnnotator",
    "KLBoundError",
    "LikelihoodAnnotator",
    "MixedSource",
    "ModelAnnotator",
    "NonFiniteLossError",
    "Objective",
    "OnlineBDHSSource",
    "OnlinePairsSource",
    "PairSource",
    "Reward",
    "RewardAccuracy",
    "RewardError",
    "RewardModel",
    "RewardStatistics",
    "Rollout",
    "RolloutSource",
    "StoredSource",
    "SupervisedSource",
    "TrainConfig",
    "TrainResult",
    "TrainingExample",
    "annotator_accuracy",
    "columns_of",
    "gives_rewards",
    "pairwise",
    "parse_verdict",
    "ppo",
    "reward_accuracy",
    "reward_modelling",
    "reward_statistics",
    "rloo",
    "supervised",
    "train",
]
