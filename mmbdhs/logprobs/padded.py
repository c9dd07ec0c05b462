"""The plain way to log-probabilities of responses: every response in a row of its own, in the model's own forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.logprobs.responses import ResponseLogps, Responses, checked_responses, laid_out
from mmbdhs.vlm import runnable


def separate_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    *,
    temperature: float = 1.0,
    truncate_responses: bool = False,
) -> ResponseLogps:
    """`response_logps` without sharing anything: each prompt stands N times in a right-padded batch. For models whose
    rows cannot be shared, and to compare with."""
    model = runnable(model)
    ids = checked_responses(model, prompts, responses, temperature, truncate_responses)
    found: list[Tensor] = []
    for inputs, texts in zip(prompts, ids, strict=True):
        batch, longest = _batch(model, inputs, texts), max(map(len, texts))
        logits = model(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].float() / temperature
        labels = batch["input_ids"][:, batch["input_ids"].shape[1] - longest :, None]
        tokens = logits.log_softmax(dim=-1).gather(2, labels.to(logits.device))[..., 0]
        found += [row[: len(text)] for row, text in zip(tokens, texts, strict=True)]
    return laid_out(torch.cat(found), ids)


def _batch(model: nn.Module, inputs: Mapping[str, Any], texts: list[Tensor]) -> dict[str, Any]:
    """The prompt N times, each with a response behind it; images stand behind one another, as processors batch them."""
    prompt, longest = inputs["input_ids"], max(map(len, texts))
    padded = nn.utils.rnn.pad_sequence([prompt.new_zeros(longest), *texts], batch_first=True)[1:]
    lengths = torch.tensor([prompt.shape[1] + len(text) for text in texts], device=prompt.device)
    mask = torch.arange(prompt.shape[1] + longest, device=prompt.device) < lengths[:, None]
    batch = {name: torch.cat([x] * len(texts)) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    kinds = {name: x for name, x in batch.items() if isinstance(x, Tensor) and x.shape == (len(texts), prompt.shape[1])}
    kinds = {name: x for name, x in kinds.items() if name not in ("input_ids", "attention_mask")}
    # Of which kind a response's tokens are, the model says when it generates them.
    grown = model._update_model_kwargs_for_generation({}, dict(kinds))
    for name, x in kinds.items():
        after = grown[name][:, -1:] if grown[name].shape != x.shape else x.new_zeros(len(x), 1)
        batch[name] = torch.cat([x, after.expand(-1, longest)], dim=1)
    ids = torch.cat([prompt.expand(len(texts), -1), padded], dim=1)
    return batch | {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
