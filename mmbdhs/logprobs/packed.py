"""One prompt, many responses, with gradients: log-probabilities of N responses for one pass over their image prompt.

A row holds prompt | response 1 | … | response N. A response sees the prompt and itself, and its positions continue
where the prompt ends, so every number is that of a row of its own. The image is encoded once and the prompt runs once;
the last layer runs in full only where responses need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.logprobs.last_layer import LastLayer, last_layer
from mmbdhs.logprobs.packed_attention import PackedAttention
from mmbdhs.logprobs.responses import (
    Masks,
    ResponseLogps,
    Responses,
    as_response_logps,
    checked_responses,
    checked_targets,
)
from mmbdhs.logprobs.token_logps import TokenStatistics, token_logps, token_statistics
from mmbdhs.vlm import (
    VLM,
    DecoderInputs,
    TokenRows,
    VisionOutput,
    attention_through,
    capture_decoder_inputs,
    check_exactness,
    decoder_arguments,
    logits_of,
    not_every_layer,
    text_inputs,
    vision_outputs,
)


def response_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    *,
    temperature: float = 1.0,
    truncate_responses: bool = False,
    masks: Masks | None = None,
    targets: Sequence[Sequence[int] | Tensor] | None = None,
) -> ResponseLogps:
    """Log-probabilities of N responses to each of B image prompts, with gradients. Each prompt runs once.

    model: a VLM of `transformers`, also inside torch.compile, DDP or PEFT, in training or evaluation mode.
    prompts: for each prompt the processor's output (batch size 1), generation prompt included.
    responses: for each prompt N lists of token ids, with the end of sequence as far as it is to count.
    temperature: divides the logits.
    truncate_responses: whether to cut responses at the end of the model's context; otherwise longer ones are an error.
    masks: for each response which of its tokens count; None for all. The others are read but not scored, as turns of
        the user between the assistant's.
    targets: for each prompt as many token ids as its first response has. Their log-probabilities, each after the tokens
        of the first response before it, are one more column at the end; its tokens count where those of the first
        response do. None for no such column. This is how POVID scores what a model predicts (arXiv 2402.11411).

    Raises ValueError for lists that do not fit and for responses beyond the context, UnsupportedModelError for a model
    whose rows cannot be shared; `separate_logps` takes those.
    """
    vlm = VLM.of(model)
    with vlm.lock:
        vlm.require_whole_parameters()
        ids = checked_responses(vlm, prompts, responses, temperature, truncate_responses)
        before = _states_before(vlm, prompts, ids)
        if targets is not None:
            ids = [[*texts, target] for texts, target in zip(ids, checked_targets(vlm, ids, targets), strict=True)]
            before = [torch.cat([states, states[: len(texts[0])]]) for states, texts in zip(before, ids, strict=True)]
            masks = None if masks is None else [[*rows, rows[0]] for rows in masks]
        labels = torch.cat([text for texts in ids for text in texts])
        tokens = token_logps(vlm, torch.cat(before), labels.to(before[0].device), temperature)
        return as_response_logps(tokens, ids, masks)


def scored_tokens(
    model: nn.Module, prompts: Sequence[Mapping[str, Any]], responses: Responses
) -> tuple[list[list[Tensor]], TokenStatistics]:
    """The log-probabilities of each response's tokens, with gradients, and the statistics of all these tokens.

    The arguments are those of `response_logps`.

    Returns for each prompt a tensor float32 [R] for each response, and statistics of the tokens of all responses one
    after another.
    """
    vlm = VLM.of(model)
    with vlm.lock:
        vlm.require_whole_parameters()
        ids, hidden, labels = _labelled_states(vlm, prompts, responses)
        found = iter(token_logps(vlm, hidden, labels, 1.0).split([len(text) for texts in ids for text in texts]))
        return [[next(found) for _ in texts] for texts in ids], token_statistics(vlm, hidden, labels)


def scored_states(
    model: nn.Module, prompts: Sequence[Mapping[str, Any]], responses: Responses
) -> tuple[ResponseLogps, Tensor, Tensor]:
    """`response_logps`, and of the same pass what reinforcement learning needs besides.

    The arguments are those of `response_logps`. R is the length of the longest response.

    Returns the log-probabilities; the entropy of the distribution of each token in nats, float32 [B, N, R], without
    gradient; and the hidden state from which each token is predicted, [B, N, R, hidden]. Both are 0 where padded.
    """
    vlm = VLM.of(model)
    with vlm.lock:
        vlm.require_whole_parameters()
        ids, hidden, labels = _labelled_states(vlm, prompts, responses)
        logps = as_response_logps(token_logps(vlm, hidden, labels, 1.0), ids, None)
        entropy = token_statistics(vlm, hidden, labels).entropy
        padded = [
            values.new_zeros(*logps.mask.shape, *values.shape[1:]).index_put((logps.mask,), values)
            for values in (entropy, hidden)
        ]
        return logps, padded[0], padded[1]


def last_states(model: nn.Module, prompts: Sequence[Mapping[str, Any]], responses: Responses) -> Tensor:
    """The hidden state of the last token of N responses to each of B image prompts, [B, N, hidden], with gradients.

    The arguments are those of `response_logps`. An empty response has the state of the prompt's last token.
    """
    vlm = VLM.of(model)
    with vlm.lock:
        vlm.require_whole_parameters()
        ids = checked_responses(vlm, prompts, responses, 1.0, False)
        return torch.stack(_states(vlm, prompts, ids, _last_indices))


@torch.no_grad()
def predicted_ids(
    model: nn.Module, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[int] | Tensor]
) -> list[Tensor]:
    """The most probable token in the place of each token of a response, given the tokens before it: int64 [R] each.

    model: as `response_logps` takes it, in training or evaluation mode.
    prompts: for each response the processor's output (batch size 1), generation prompt included.
    responses: one list of token ids for each prompt.
    """
    vlm = VLM.of(model)
    with vlm.lock:
        vlm.require_whole_parameters()
        ids = checked_responses(vlm, prompts, [[response] for response in responses], 1.0, False)
        return [logits_of(vlm, states).argmax(dim=-1) for states in _states_before(vlm, prompts, ids)]


def _labelled_states(
    vlm: VLM, prompts: Sequence[Mapping[str, Any]], responses: Responses
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """The checked token ids of the responses, and of all their tokens the hidden state before each, [ΣR, hidden], and
    the ids, [ΣR]."""
    ids = checked_responses(vlm, prompts, responses, 1.0, False)
    hidden = torch.cat(_states_before(vlm, prompts, ids))
    return ids, hidden, torch.cat([text for texts in ids for text in texts]).to(hidden.device)


def _states_before(vlm: VLM, prompts: Sequence[Mapping[str, Any]], ids: list[list[Tensor]]) -> list[Tensor]:
    """For each prompt the hidden states from which the tokens of its responses are predicted, [ΣR, hidden]."""
    return _states(vlm, prompts, ids, _indices_before)


def _states(
    vlm: VLM,
    prompts: Sequence[Mapping[str, Any]],
    ids: list[list[Tensor]],
    picked: Callable[[int, list[int]], list[int]],
) -> list[Tensor]:
    """For each prompt some hidden states of its packed row.

    picked: (length of the prompt, lengths of its responses) -> indices of tokens, of responses or the prompt's last.
    """
    rows = [_packed(vlm, *row) for row in zip(prompts, ids, vision_outputs(vlm, prompts), strict=True)]
    lengths = [[len(text) for text in texts] for texts in ids]
    attention = PackedAttention(rows, lengths, vlm.decoder.config._attn_implementation == "eager")
    arguments = decoder_arguments(rows)
    with _attending(vlm, attention, arguments["inputs_embeds"].shape[1]):
        hidden = vlm.decoder(**arguments, use_cache=False).last_hidden_state
    _check_windows(vlm, attention.windowed)
    index = [picked(row.prompt_length, texts) for row, texts in zip(rows, lengths, strict=True)]
    return [hidden[row, tokens] for row, tokens in enumerate(index)]


def _packed(vlm: VLM, inputs: Mapping[str, Any], texts: list[Tensor], vision: VisionOutput | None) -> DecoderInputs:
    """The prompt and its responses in one row, as the decoder takes them."""
    ids, together = inputs["input_ids"][0], torch.cat(texts)
    prompt = capture_decoder_inputs(vlm, inputs, len(ids), vision)
    check_exactness(vlm, prompt, ids, len(ids) + len(together))
    text = text_inputs(vlm, together) if prompt.extra_kwargs and len(together) else None
    embeds = vlm.model.get_input_embeddings()(together) if text is None else text.embeds
    steps = torch.cat([torch.arange(len(text), device=together.device) for text in texts])
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, embeds.to(prompt.embeds)]),
        positions=torch.cat([prompt.positions, prompt.positions[:, -1:] + 1 + steps], dim=1),
        indices=torch.cat([prompt.indices, len(ids) + steps]),
        extra_kwargs=_extended(prompt.extra_kwargs, {} if text is None else text.extra_kwargs, len(together)),
    )


def _extended(prompt: dict[str, Any], text: dict[str, Any], length: int) -> dict[str, Any]:
    """The decoder's extra arguments for the prompt and `length` tokens of text; rows that the text lacks are 0."""

    def extended(before: Any, after: Any = None) -> Any:
        if not isinstance(before, TokenRows):
            return before
        zeros = before.rows.new_zeros(length, *before.rows.shape[1:])
        return TokenRows(torch.cat([before.rows, zeros if after is None else after.rows]))

    return {name: tree_map(extended, value, *([text[name]] if name in text else [])) for name, value in prompt.items()}


def _indices_before(prompt: int, lengths: list[int]) -> list[int]:
    """For each response token of a row the index of the token that predicts it."""
    indices, begin = [], prompt
    for length in lengths:
        indices += [prompt - 1, *range(begin, begin + length - 1)][:length]
        begin += length
    return indices


def _last_indices(prompt: int, lengths: list[int]) -> list[int]:
    """For each response of a row the index of its last token; for an empty one that of the prompt's."""
    ends = [prompt + end for end in accumulate(lengths)]
    return [end - 1 if length else prompt - 1 for end, length in zip(ends, lengths, strict=True)]


def _check_windows(vlm: VLM, windowed: list[bool]) -> None:
    """Only the last call of a layer may have run for its windows alone."""
    if not windowed:
        raise not_every_layer(0, 1)
    if any(windowed[:-1]):
        raise UnsupportedModelError(
            f"model: needs a decoder that runs the last of its layers once and last, got {type(vlm.decoder).__name__}"
        )


@contextmanager
def _attending(vlm: VLM, attention: PackedAttention, length: int) -> Iterator[None]:
    """For the length of the context the decoder's layers attend through `attention`, in rows of `length` tokens; the
    last layer runs only for its windows. Checkpointed layers do the same when backward runs them again."""
    configs = vlm.decoder_configs
    last = LastLayer(last_layer(vlm.decoder), attention, attention.windows(length), length, configs)

    def checkpointed(checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(*inner: Any, **more: Any) -> Any:
            with attention_through(attention, configs):
                return function(*inner, **more)

        return checkpoint(run, *args, **kwargs)

    modules: Iterator[Any] = vlm.decoder.modules()
    layers = {m: f for m in modules if (f := getattr(m, "_gradient_checkpointing_func", None)) is not None}
    try:
        for layer, checkpoint in layers.items():
            layer._gradient_checkpointing_func = partial(checkpointed, checkpoint)
        with attention_through(attention, configs), last.running():
            yield
    finally:
        for layer, checkpoint in layers.items():
            layer._gradient_checkpointing_func = checkpoint
