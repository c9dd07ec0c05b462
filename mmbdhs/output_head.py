"""From the decoder's hidden states to logits, the way the model at hand does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmbdhs.text_decoder import text_decoder

# Models that do more to their logits than a linear layer does (cap or scale them, say), as `probe` found.
_OF_THEIR_OWN: WeakSet[nn.Module] = WeakSet()


class OutputHead:
    """hidden [n, hidden] -> logits [n, V]: the output embeddings, or all that the model does behind its decoder."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._model in _OF_THEIR_OWN:
            return _logits_of_its_own(self._model, hidden)
        return self._model.get_output_embeddings()(hidden)


def settle_head(model: nn.Module, hidden: Tensor, agrees: Callable[[Tensor], bool]) -> None:
    """Find out which: whose logits for `hidden` agree with what the model makes of the same tokens?"""
    if not agrees(OutputHead(model)(hidden)) and agrees(_logits_of_its_own(model, hidden)):
        _OF_THEIR_OWN.add(model)


def _logits_of_its_own(model: nn.Module, hidden: Tensor) -> Tensor:
    """The model's own forward, in which its decoder returns `hidden`."""
    with _returning(text_decoder(model), hidden[:, None]):
        mask = torch.ones(len(hidden), 1, dtype=torch.int64, device=hidden.device)
        return model(inputs_embeds=hidden[:, None], attention_mask=mask, use_cache=False).logits[:, 0]


@contextmanager
def _returning(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    own = decoder.__dict__.get("forward")  # set by wrappers such as Accelerate's hooks

    def forward(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    decoder.forward = forward
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own
