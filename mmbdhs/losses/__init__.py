"""Losses for aligning with preferences, as pure functions of log-probabilities: no model, no trainer.

Pairwise losses take policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, in
that order; those without a reference model the first two. What is particular to a loss is keyword-only. They return
PreferenceLoss(losses, chosen_rewards, rejected_rewards), [B] each, not reduced, the rewards detached.

Log-probabilities are in nats. bfloat16 and float16 are computed with in float32, which the results then have; float32
and float64 stay what they are. Margins of a million nats make neither infinities nor NaN, forward or backward.

All raise a TypeError or ValueError that names the argument, what it needs and what it got: for shapes or devices that
differ, integer log-probabilities, NaN or infinite ones, lengths that are not positive, β ≤ 0, ε outside of [0, 0.5).
Values are looked at once per call, which waits for the device once; under torch.compile they are not looked at, for
the sake of fullgraph.
"""

from mmbdhs.losses.combined import averaged_loss, ddpo_logps, mixed_loss
from mmbdhs.losses.pairs import PreferenceLoss
from mmbdhs.losses.preference import (
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    dpo_loss,
    exo_pair_loss,
    gpo_loss,
    ipo_loss,
    mdpo_loss,
    nca_pair_loss,
    robust_dpo_loss,
    slic_loss,
    sppo_hard_loss,
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
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "averaged_loss",
    "bco_pair_loss",
    "cpo_loss",
    "ddpo_logps",
    "discopop_loss",
    "dpo_loss",
    "exo_pair_loss",
    "gae",
    "gpo_loss",
    "ipo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "kto_reference_point",
    "mdpo_loss",
    "mixed_loss",
    "nca_pair_loss",
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
    "sppo_hard_loss",
    "whiten",
]
