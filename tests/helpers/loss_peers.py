"""The losses of TRL's trainers and of Liger-Kernel, called unchanged on log-probabilities instead of models.

Functions take float64 vectors [B] of policy and reference. They return what those libraries compute for the batch, a
scalar, or with `one_by_one` what they compute for each example as a batch of one, [B].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def one_by_one(loss: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """The loss of each example as a batch of one, [B]."""
    return torch.stack([loss(*(vector[i : i + 1] for vector in vectors)).reshape(()) for i in range(len(vectors[0]))])


def _bare(trainer: type, **attributes: Any) -> Any:
    """Make a trainer without calling its constructor, which needs models, data and a configuration."""
    made = object.__new__(trainer)
    common = {"model": SimpleNamespace(training=True), "accelerator": ACCELERATOR, "aux_loss_enabled": False}
    common |= {"_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0, "_tp_size": 1}
    for name, value in (common | attributes).items():
        setattr(made, name, value)
    return made


def _spread(sums: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token log-probabilities [B, T - 1] with these sums, and the completion mask [B, T], whose first token is the
    prompt's."""
    mask = torch.arange(int(lengths.max()) + 1) > lengths.max() - lengths[:, None]
    return torch.where(mask[:, 1:], (sums / lengths)[:, None], 0.0), mask.long()


def _outputs(log_probs: Tensor) -> SimpleNamespace:
    nothing = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trl_dpo(loss_type: str, *four: Tensor, lengths: Tensor | None = None, **settings: float) -> Tensor:
    """TRL's DPO loss of the whole batch, a scalar. lengths: [2B], of the chosen and then of the rejected responses."""
    from trl import DPOTrainer

    lengths = torch.ones(2 * len(four[0]), dtype=torch.long) if lengths is None else lengths
    log_probs, mask = _spread(torch.cat(four[:2]), lengths)
    trainer = _bare(
        DPOTrainer,
        **{"ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "use_weighting": False},
        **{"loss_types": [loss_type], "loss_weights": [1.0], "beta": 0.1, "label_smoothing": 0.0} | settings,
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": four[2], "ref_rejected_logps": four[3]}
    return trainer._compute_loss(lambda **_: _outputs(log_probs), inputs, False)


def trl_kto(policy: Tensor, reference: Tensor, labels: Tensor, mismatched: Tensor, **settings: float) -> Tensor:
    """TRL's KTO loss. mismatched: [B], log-ratios of mismatched responses."""
    from trl import KTOTrainer

    log_probs, mask = _spread(policy, torch.ones(len(policy), dtype=torch.long))
    trainer = _bare(
        KTOTrainer,
        **{"precompute_ref_logps": True, "calculate_KL": True, "loss_type": "kto", "beta": 0.1} | settings,
        _compute_kl_logps=lambda model, batch: mismatched,
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": labels}
    inputs |= {"ref_logps": reference, "ref_KL_logps": torch.zeros_like(mismatched)}
    return trainer._compute_loss(lambda **_: _outputs(log_probs), inputs, False)


def trl_reward(chosen: Tensor, rejected: Tensor, margin: Tensor, centering: float) -> Tensor:
    from trl import RewardTrainer

    scores = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    trainer = _bare(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": torch.ones(2, 1), "margin": margin}
    return trainer.compute_loss(lambda **_: scores, inputs)


def trl_cpo(loss_type: str, chosen: Tensor, rejected: Tensor, nll: Tensor, **settings: float) -> Tensor:
    """TRL's CPO loss. chosen, rejected: sums, or means for "simpo". nll: the term that TRL adds for one example."""
    from trl.experimental.cpo import CPOTrainer

    trainer = _bare(
        CPOTrainer,
        **{"loss_type": loss_type, "alpha": 0.0, "label_smoothing": 0.0, "cpo_alpha": 0.0} | settings,
        concatenated_forward=lambda model, batch: (chosen, rejected, nll, nll, nll.mean()),
    )
    return trainer.get_batch_loss_metrics(None, {})[0]


def trl_orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """TRL's ORPO loss of mean log-probabilities per token."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = _bare(
        ORPOTrainer,
        beta=beta,
        concatenated_forward=lambda model, batch: (chosen, rejected, chosen, chosen, -chosen.mean()),
    )
    return trainer.get_batch_loss_metrics(None, {})[0]


def trl_rloo(policy: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    from trl import RLOOTrainer

    tokens = torch.ones(len(policy), 1, dtype=torch.long)
    trainer = _bare(RLOOTrainer, epsilon_low=clip_range, epsilon_high=clip_range)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy[:, None], torch.zeros(len(policy), 1), None)
    inputs = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), tokens)
    return trainer._compute_loss(None, inputs | {"old_logps": old, "advantages": advantages})


def liger_dpo(loss_type: str, *four: Tensor, **settings: float) -> Tensor:
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    def loss(chosen: Tensor, rejected: Tensor, *reference: Tensor) -> Tensor:
        pair = torch.empty(2, 1)
        return LigerFusedLinearDPOFunction.preference_loss_fn(
            chosen, rejected, pair, *reference, loss_type=loss_type, **settings
        )[0]

    return one_by_one(loss, *four)


def liger_kto(policy: Tensor, reference: Tensor, labels: Tensor, kl: Tensor, beta: float) -> Tensor:
    from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction

    def loss(policy: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        return LigerFusedLinearKTOFunction.preference_loss_fn(policy, labels, torch.empty(1), reference, beta, kl)[0]

    return one_by_one(loss, policy, reference, labels)


def liger_fused(name: str, hidden: Tensor, weight: Tensor, targets: Tensor, **settings: float) -> Tensor:
    """LigerFusedLinear…Loss of one pair. hidden: [2, T, H], the chosen response first. targets: [2, T], −100: none."""
    from liger_kernel import chunked_loss

    loss = getattr(chunked_loss, f"LigerFusedLinear{name}Loss")(compiled=False, **settings)
    return loss(weight, hidden, targets)[0]


def liger_policy(policy: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Liger's clipped policy loss of each token."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def loss(policy: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        mask = torch.ones(1, 1)
        clip = {"epsilon_low": clip_range, "epsilon_high": clip_range, "beta": 0.0, "loss_type": "bnpo"}
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(
            policy[:, None], mask, advantages, mask, old_per_token_logps=old[:, None], **clip
        )[0]

    return one_by_one(loss, policy, old, advantages)


def liger_k3(policy: Tensor, reference: Tensor) -> Tensor:
    from liger_kernel.chunked_loss.grpo_loss import k3_loss_fn

    return k3_loss_fn(reference, policy)
