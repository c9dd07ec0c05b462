"""Log-probabilities of given tokens through a model's own output head."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmbdhs.logprobs.chunked_head import CHUNK_LOGITS, chunked_logps, logps_through
from mmbdhs.vlm import VLM, linear_head, logits_of


def token_logps(vlm: VLM, hidden: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p(labels[t] | hidden[t]), float32 [T], without the logits of all tokens at once.

    hidden: [T, hidden].
    labels: int64 [T].
    temperature: divides the logits.
    """
    if (head := linear_head(vlm)) is not None:
        return chunked_logps(hidden, head.weight, labels, bias=head.bias, temperature=temperature)
    return logps_through(partial(logits_of, vlm), hidden, labels, temperature=temperature)


class TokenStatistics(NamedTuple):
    """What a distribution over the next token says besides the log-probability of one, float32 [T] each, no gradient.

    entropy: in nats.
    mean_logits: mean of the logits over the vocabulary.
    is_top1: bool [T], whether the label is the most probable token.
    log_sum_sq_probs: log Σ p².
    """

    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor


@torch.no_grad()
def token_statistics(vlm: VLM, hidden: Tensor, labels: Tensor) -> TokenStatistics:
    """The statistics of each token's distribution, with the logits of few tokens at a time.

    hidden: [T, hidden].
    labels: int64 [T].
    """
    parts = [_statistics(logits_of(vlm, some).float(), own) for some, own in _chunks(vlm, hidden, labels)]
    return TokenStatistics(*map(torch.cat, zip(*parts, strict=True)))


def _chunks(vlm: VLM, hidden: Tensor, labels: Tensor) -> zip[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_LOGITS // vlm.embedding_count)
    return zip(hidden.split(size), labels.split(size), strict=True)


def _statistics(logits: Tensor, labels: Tensor) -> TokenStatistics:
    logps = logits.log_softmax(dim=-1)
    entropy = -(logps.exp() * logps.clamp_min(torch.finfo(logps.dtype).min)).sum(dim=-1)  # 0 · -inf is 0 here
    return TokenStatistics(entropy, logits.mean(dim=-1), logits.argmax(dim=-1) == labels, (2 * logps).logsumexp(dim=-1))
