"""Losses that align a model with preferences: pure functions of log-probabilities, without a model or a trainer.

Pairwise losses take policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, in
this order; losses without a reference model take the first two. Settings are keyword-only. The result is
PreferenceLoss(losses, chosen_rewards, rejected_rewards), [B] each: losses are not reduced, rewards are detached.

Log-probabilities are in nats. bfloat16 and float16 are computed in float32, and so are results; float32 and float64
stay as they are. Margins of a million nats give neither infinity nor NaN, forward or backward. A TypeError or
ValueError names the argument, what it needs and what it got. Checking values waits for the device once per call; under
torch.compile values are not checked.

Read in this order: `pairs` (the result and the four arguments), `preference` (losses with a reference model; `dpo_loss`
comes first), `reference_free`, `unpaired` (KTO), `combined` (Eq. 4-5), `reinforce` (RLOO, PPO, KL estimates; Eq. 2).
"""

from mmbdhs.losses.combined import averaged_loss, mixed_loss
from mmbdhs.losses.pairs import PreferenceLoss
from mmbdhs.losses.preference import (
    dpo_loss,
    ipo_loss,
    mdpo_loss,
    robust_dpo_loss,
    slic_loss,
)
from mmbdhs.losses.reference_free import cpo_loss, orpo_loss, reward_model_loss, sft_loss, simpo_loss, slic_hf_loss
from mmbdhs.losses.reinforce import (
    Advantages,
    PPOLoss,
    gae,
    kl_k1,
    kl_k2,
    kl_k3,
    ppo_loss,
    rloo_advantages,
    rloo_loss,
    whiten,
)
from mmbdhs.losses.unpaired import UnpairedLoss, kto_loss, kto_reference_point

__all__ = [
    "Advantages",
    "PPOLoss",
    "PreferenceLoss",
    "UnpairedLoss",
    "averaged_loss",
    "cpo_loss",
    "dpo_loss",
    "gae",
    "ipo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "kto_reference_point",
    "mdpo_loss",
    "mixed_loss",
    "orpo_loss",
    "ppo_loss",
    "reward_model_loss",
    "rloo_advantages",
    "rloo_loss",
    "robust_dpo_loss",
    "sft_loss",
    "simpo_loss",
    "slic_hf_loss",
    "slic_loss",
    "whiten",
]
