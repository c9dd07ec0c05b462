"""What the losses of pairs share: their result, and the four vectors that losses with a reference model take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, cast

import torch.nn.functional as F
from torch import Tensor

from mmbdhs import checks

Settings = ParamSpec("Settings")

_FOUR_ARGUMENTS = """\
policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: float [B] each,
    log-probabilities in nats, summed over the tokens of the response."""


class PreferenceLoss(NamedTuple):
    """Losses and rewards of B pairs.

    losses: [B], not reduced.
    chosen_rewards, rejected_rewards: [B], detached, for accuracies and margins.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class PairLogps(NamedTuple):
    """Log-probabilities of B pairs in nats, float [B] each, summed over the tokens of the response."""

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    reference_chosen_logps: Tensor
    reference_rejected_logps: Tensor

    def checked(
        self, others: Mapping[str, Tensor] | None = None, lengths: Mapping[str, Tensor | None] | None = None
    ) -> list[Tensor]:
        """The four vectors and after them `others`, named and [B] each, all checked together and widened."""
        return checks.sequences({**self._asdict(), **(others or {})}, lengths)

    def log_ratios(self, lengths: Mapping[str, Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
        """Compute h = log π(y)/π_ref(y) of the chosen and of the rejected responses."""
        policy_chosen, policy_rejected, reference_chosen, reference_rejected = self.checked(lengths=lengths)
        return policy_chosen - reference_chosen, policy_rejected - reference_rejected

    def rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """Compute r = β log π(y)/π_ref(y) of the chosen and of the rejected responses."""
        checks.above_zero(beta=beta)
        chosen, rejected = self.log_ratios()
        return beta * chosen, beta * rejected


class LossWithReference(Protocol[Settings]):
    """The signature of a loss with a reference model, for type checkers."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *args: Settings.args,
        **settings: Settings.kwargs,
    ) -> PreferenceLoss: ...


def with_reference(
    loss: Callable[Concatenate[PairLogps, Settings], PreferenceLoss],
) -> LossWithReference[Settings]:
    """Let a loss of one PairLogps take its four vectors as four arguments; its signature and help show them."""

    def four_arguments(
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        **settings: Any,
    ) -> PreferenceLoss:
        pair = PairLogps(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        return loss(pair, **settings)  # type: ignore[call-arg]

    vectors = list(inspect.signature(four_arguments).parameters.values())[:4]
    signature = inspect.signature(loss)
    settings = list(signature.parameters.values())[1:]
    shown = functools.wraps(loss)(four_arguments)
    shown.__signature__ = signature.replace(parameters=[*vectors, *settings])  # type: ignore[attr-defined]
    shown.__doc__ = f"{inspect.cleandoc(loss.__doc__ or '')}\n\n{_FOUR_ARGUMENTS}"
    return cast(LossWithReference[Settings], shown)


def preference(losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> PreferenceLoss:
    """The result of a pairwise loss, whose rewards are detached."""
    return PreferenceLoss(losses, chosen_rewards.detach(), rejected_rewards.detach())


def logistic(margins: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute −(1 − ε) log σ(m) − ε log σ(−m), [B]: the logistic loss where a share ε of the labels is flipped.

    margins: m, float [B].
    label_smoothing: ε in [0, 0.5).
    """
    checks.below_half(label_smoothing=label_smoothing)
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def per_token(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The means per token of sums over `lengths` tokens, or `values` themselves without lengths; [B] all."""
    return values if lengths is None else values / lengths
