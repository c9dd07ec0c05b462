"""What the model at hand does around its decoder: behind it to make logits, and before it to a generated token.

For most that is a linear layer and an embedding. Some cap or scale their logits, or hand their decoder more than one
embedding of a token; these run in their own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmbdhs.vlm.decoder_inputs import DecoderInputs
from mmbdhs.vlm.text_decoder import find_text_decoder

# Models that do more than that, as `probe` found.
_OWN_LOGITS: WeakSet[nn.Module] = WeakSet()
_OWN_STEPS: WeakSet[nn.Module] = WeakSet()


class OutputHead:
    """hidden [n, hidden] -> logits [n, V]: the output embeddings, or all that the model does behind its decoder."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def linear(self) -> nn.Linear | None:
        """The output embeddings, if they are all that there is to the head."""
        head = self._model.get_output_embeddings()
        plain = type(head) is nn.Linear and "forward" not in vars(head)  # which Accelerate's offloading replaces
        return head if plain and self._model not in _OWN_LOGITS else None

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._model in _OWN_LOGITS:
            return _logits_of_its_own(self._model, hidden)
        return self._model.get_output_embeddings()(hidden)


def settle_head(model: nn.Module, hidden: Tensor, agrees: Callable[[Tensor], bool]) -> None:
    """Find out which: whose logits for `hidden` agree with what the model makes of the same tokens?"""
    if not agrees(OutputHead(model)(hidden)) and agrees(_logits_of_its_own(model, hidden)):
        _OWN_LOGITS.add(model)


def settle_steps(model: nn.Module, text: DecoderInputs) -> None:
    """Find out whether the decoder takes more than embeddings for the plain text that generated tokens are."""
    if text.further:
        _OWN_STEPS.add(model)


def step_logits(model: nn.Module, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Logits [n, V] after one token more in each row; the attention sees to what came before.

    tokens: int64 [n, 1]. positions: int64 [n, 1] or [R, n, 1].
    """
    arguments = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
    if model in _OWN_STEPS:
        return model(input_ids=tokens, **arguments).logits[:, 0]
    output = find_text_decoder(model)(inputs_embeds=model.get_input_embeddings()(tokens), **arguments)
    return OutputHead(model)(output.last_hidden_state[:, 0])


def _logits_of_its_own(model: nn.Module, hidden: Tensor) -> Tensor:
    """The model's own forward, in which its decoder returns `hidden`."""
    with _returning(find_text_decoder(model), hidden[:, None]):
        mask = torch.ones(len(hidden), 1, dtype=torch.int64, device=hidden.device)
        return model(inputs_embeds=hidden[:, None], attention_mask=mask, use_cache=False).logits[:, 0]


@contextmanager
def _returning(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    def forward(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    with running_instead(decoder, forward):
        yield


@contextmanager
def running_instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` in the place of the module's own, inside of its hooks."""
    own = module.__dict__.get("forward")  # set by wrappers such as Accelerate's hooks
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
