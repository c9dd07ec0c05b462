"""What a model does around its decoder: logits after it, and a generated token's embedding before it.

For most models that is a linear layer and an embedding. Some cap or scale their logits, or give their decoder more
than one embedding of a token; these run in their own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmbdhs.vlm.vlm import VLM


def logits_of(vlm: VLM, hidden: Tensor) -> Tensor:
    """Logits [n, V] for the decoder's hidden states [n, hidden]."""
    if vlm.custom_head:
        return _logits_by_the_model(vlm, hidden)
    return vlm.model.get_output_embeddings()(hidden)


def linear_head(vlm: VLM) -> nn.Linear | None:
    """The output embeddings where logits are nothing but their product; None for any other head."""
    head = vlm.model.get_output_embeddings()
    replaced = "forward" in vars(head)  # Accelerate's offloading does so
    return head if type(head) is nn.Linear and not replaced and not vlm.custom_head else None


def detect_custom_head(vlm: VLM, hidden: Tensor, agrees: Callable[[Tensor], bool]) -> None:
    """Note in `vlm` whether logits for `hidden` agree with the model's own only if its forward makes them.

    agrees: tells whether logits are those of the model's own forward for the same tokens.
    """
    vlm.custom_head = False
    if not agrees(logits_of(vlm, hidden)) and agrees(_logits_by_the_model(vlm, hidden)):
        vlm.custom_head = True


def step_logits(vlm: VLM, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Logits [n, V] after one more token in each row; attention knows what came before.

    tokens: int64 [n, 1].
    positions: int64 [n, 1] or [R, n, 1].
    """
    arguments = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
    if vlm.custom_step:
        return vlm.model(input_ids=tokens, **arguments).logits[:, 0]
    output = vlm.decoder(inputs_embeds=vlm.model.get_input_embeddings()(tokens), **arguments)
    return logits_of(vlm, output.last_hidden_state[:, 0])


def _logits_by_the_model(vlm: VLM, hidden: Tensor) -> Tensor:
    """Logits of the model's own forward, with a decoder that returns `hidden`."""

    def decoder(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=hidden[:, None])

    with replaced_forward(vlm.decoder, decoder):
        mask = torch.ones(len(hidden), 1, dtype=torch.int64, device=hidden.device)
        return vlm.model(inputs_embeds=hidden[:, None], attention_mask=mask, use_cache=False).logits[:, 0]


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Runs `forward` instead of the module's own, inside the module's hooks."""
    own = module.__dict__.get("forward")  # wrappers such as Accelerate's hooks set it on the instance
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
