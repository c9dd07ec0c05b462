"""Log-probabilities of tokens through a model's own output head."""

from __future__ import annotations

from torch import Tensor, nn

from mmbdhs.logprobs.chunked_head import chunked_logps, logps_through
from mmbdhs.vlm import OutputHead


def token_logps(model: nn.Module, hidden: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p(labels[t] | hidden[t]), float32 [T], without the logits of all tokens at a time.

    hidden: [T, hidden]. labels: int64 [T]."""
    head = OutputHead(model)
    if (linear := head.linear) is not None:
        return chunked_logps(hidden, linear.weight, labels, bias=linear.bias, temperature=temperature)
    return logps_through(head, hidden, labels, temperature=temperature)
