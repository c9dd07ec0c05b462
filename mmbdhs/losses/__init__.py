"""Losses for alignment with preferences: pure functions of log-probabilities, without a model or a trainer.

Pairwise losses take policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, float
[B] in nats, or the first two if they need no reference; a loss's own settings are keyword-only. They return a
PreferenceLoss: losses and detached rewards, [B] each. bfloat16 and float16 are computed, and returned, in float32.

All raise a TypeError or ValueError that names the argument, for shapes or devices that differ, integer, NaN or infinite
log-probabilities and settings out of range. Values are looked at once per call, and not under torch.compile.

Read in this order: `pairs` (what they share), `preference` (DPO and its relatives), `combined` (Eq. 4
and 5), `reference_free`, `unpaired` (KTO), `reinforce` (RLOO, PPO). A loss imports nothing but this wing and
`mmbdhs.checks`.
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
