"""What is minimised: from log-probabilities of an example's responses to its loss.

An objective is any callable of that signature. It may say `needs_reference = False`; then no reference is computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmbdhs.logprobs import ResponseLogps
from mmbdhs.losses import PreferenceLoss, averaged_loss, sft_loss

_LENGTHS = ("chosen_lengths", "rejected_lengths")


class Objective(Protocol):
    """policy: of B examples with N responses each, the chosen first. reference: float [B, N], log p of each response
    under the reference; None if `needs_reference` is False. Rewards that do not exist are NaN."""

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss: ...


def needs_reference(objective: Objective) -> bool:
    """Whether it reads the reference; all do that do not say otherwise."""
    return getattr(objective, "needs_reference", True)


@dataclass(frozen=True)
class _Pairwise:
    loss: Callable[..., PreferenceLoss]
    weights: tuple[float, ...] | None
    lengths: tuple[str, ...]
    needs_reference: bool
    settings: dict[str, Any]

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        others = range(1, policy.sums.shape[1])
        weights = self.weights or [1 / len(others) for _ in others]
        return averaged_loss([self._against(other, policy, reference) for other in others], weights=weights)

    def _against(self, other: int, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        values = [policy.sums] if reference is None else [policy.sums, reference]
        vectors = [of[:, place] for of in values for place in (0, other)]
        lengths = dict(zip(_LENGTHS, (policy.lengths[:, 0], policy.lengths[:, other]), strict=True))
        return self.loss(*vectors, **{name: lengths[name] for name in self.lengths}, **self.settings)


def pairwise(
    loss: Callable[..., PreferenceLoss],
    weights: Sequence[float] | None = None,
    *,
    per_token: bool = False,
    **settings: Any,
) -> Objective:
    """A pairwise loss of `mmbdhs.losses`, of the chosen response against each of the others, averaged (Eq. 5).

    weights: of the others, with sum 1; None for equal ones. per_token: hand lengths also to a loss for which they are
    optional, as length-normalised IPO is written; losses that ask for them always get them. settings: of the loss.

    Raises TypeError for settings that the loss does not take, ValueError for per_token where it takes no lengths.
    """
    signature = inspect.signature(loss)
    signature.bind_partial(**settings)
    taken = {name: signature.parameters[name] for name in _LENGTHS if name in signature.parameters}
    if per_token and not taken:
        raise ValueError(f"per_token: needs a loss that takes lengths, got {loss.__name__}")
    lengths = tuple(name for name, parameter in taken.items() if per_token or parameter.default is parameter.empty)
    needs_reference = "reference_chosen_logps" in signature.parameters
    return _Pairwise(loss, None if weights is None else tuple(weights), lengths, needs_reference, settings)


@dataclass(frozen=True)
class _Supervised:
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: ResponseLogps, reference: Tensor | None) -> PreferenceLoss:
        losses = sft_loss(policy.sums[:, 0], chosen_lengths=policy.lengths[:, 0])
        none = torch.full_like(losses, torch.nan).detach()
        return PreferenceLoss(losses, none, none)


def supervised() -> Objective:
    """−log p per token of the chosen response, each example weighing the same. There are no rewards."""
    return _Supervised()
