"""The plain way to log-probabilities of responses: each response in a padded row, through the model's own forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.logprobs.responses import Masks, ResponseLogps, Responses, as_response_logps, checked_responses
from mmbdhs.vlm import VLM


def separate_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    *,
    temperature: float = 1.0,
    truncate_responses: bool = False,
    masks: Masks | None = None,
) -> ResponseLogps:
    """`response_logps` without sharing: each prompt occurs N times in a right-padded batch.

    This is for models whose rows cannot be shared, and to compare with. Arguments are those of `response_logps`.
    """
    vlm = VLM.of(model)
    vlm.require_whole_parameters()
    ids = checked_responses(vlm, prompts, responses, temperature, truncate_responses)
    found: list[Tensor] = []
    for inputs, texts in zip(prompts, ids, strict=True):
        batch, longest = _batch(vlm, inputs, texts), max(map(len, texts))
        logits = vlm.model(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].float() / temperature
        labels = batch["input_ids"][:, batch["input_ids"].shape[1] - longest :, None]
        tokens = logits.log_softmax(dim=-1).gather(2, labels.to(logits.device))[..., 0]
        found += [row[: len(text)] for row, text in zip(tokens, texts, strict=True)]
    return as_response_logps(torch.cat(found), ids, masks)


def _batch(vlm: VLM, inputs: Mapping[str, Any], texts: list[Tensor]) -> dict[str, Any]:
    """The prompt N times, each time followed by one response. Images follow one another, as processors batch them."""
    prompt, longest = inputs["input_ids"], max(map(len, texts))
    padded = nn.utils.rnn.pad_sequence([prompt.new_zeros(longest), *texts], batch_first=True)[1:]
    lengths = torch.tensor([prompt.shape[1] + len(text) for text in texts], device=prompt.device)
    mask = torch.arange(prompt.shape[1] + longest, device=prompt.device) < lengths[:, None]
    batch = {name: torch.cat([x] * len(texts)) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    shape = (len(texts), prompt.shape[1])
    by_token = {name: x for name, x in batch.items() if isinstance(x, Tensor) and x.shape == shape}
    types = {name: x for name, x in by_token.items() if name not in ("input_ids", "attention_mask")}
    # Ask the model which token_type_ids it would give to generated tokens.
    model: Any = vlm.model
    generated = model._update_model_kwargs_for_generation({}, dict(types))
    for name, x in types.items():
        after = generated[name][:, -1:] if generated[name].shape != x.shape else x.new_zeros(len(x), 1)
        batch[name] = torch.cat([x, after.expand(-1, longest)], dim=1)
    ids = torch.cat([prompt.expand(len(texts), -1), padded], dim=1)
    return batch | {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
