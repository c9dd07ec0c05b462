"""The long argument lists of the ops as named tuples, so that each list is written once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SharedPrefix(NamedTuple):
    """The arguments of `shared_prefix_attention`, in its order; see there for what they mean."""

    q: Tensor  # [B, Hq, D]
    k_prefix: Tensor  # [Hkv, P, D]
    v_prefix: Tensor  # [Hkv, P, D]
    prefix_count: Tensor  # int32 [B]
    k_suffix: Tensor  # [B, Hkv, S, D]
    v_suffix: Tensor  # [B, Hkv, S, D]
    suffix_length: Tensor  # int32 [B]
    visible: Tensor | None = None  # int32 [V]
    example: Tensor | None = None  # int32 [B]
    prefix_offsets: Tensor | None = None  # int32 [E + 1]
    scale: float | None = None
    softcap: float = 0.0

    @property
    def prefix_keys(self) -> int:
        """How many keys the prefixes of all examples have: V, or P if no rows are selected."""
        return self.k_prefix.shape[1] if self.visible is None else len(self.visible)

    @property
    def examples(self) -> tuple[Tensor, Tensor] | None:
        """`example` and `prefix_offsets`, or None if there is only one example."""
        return None if self.example is None or self.prefix_offsets is None else (self.example, self.prefix_offsets)


class Masked(NamedTuple):
    """The arguments of `masked_attention`, in its order; see there for what they mean."""

    q: Tensor  # [N, Hq, Lq, D]
    k: Tensor  # [N, Hkv, L, D]
    v: Tensor  # [N, Hkv, L, D]
    visible: Tensor  # bool [N, L]
    causal: bool = False
    scale: float | None = None
    softcap: float = 0.0


def score_factor(q: Tensor, scale: float | None) -> float:
    """Return the factor of the scores: `scale`, by default 1/√D."""
    return q.shape[-1] ** -0.5 if scale is None else scale


class SpliceDraws(NamedTuple):
    """The arguments of `draw_splices`, in its order: the addresses of N sentences and what is drawn for each."""

    seed: int
    keys: Tensor  # int64 [N]
    iteration: int
    sentences: Tensor  # int32 [N]
    swappable: Tensor  # bool [N]
    choices: Tensor  # int32 [N]
    swapped_choices: Tensor  # int32 [N]


class Splices(NamedTuple):
    """The arguments of `join_splices`, in its order: R texts with the table of their S sentences, and the splices."""

    text: Tensor  # uint8 [T]
    offsets: Tensor  # int64 [R + 1]
    table: Tensor  # int64 [S, 5]
    sentence_offsets: Tensor  # int64 [R + 1]
    swapped: Tensor  # bool [S]
    kept_bytes: Tensor  # int64 [S]
    completions: Tensor  # uint8 [C]
    completion_offsets: Tensor  # int64 [S + 1]
