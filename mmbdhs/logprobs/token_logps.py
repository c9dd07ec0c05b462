"""Log-probabilities of given tokens through a model's own output head."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmbdhs.logprobs.chunked_head import chunked_logps, logps_through
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
