"""One prompt, many responses, with gradients: log-probabilities of N responses for one pass over their image prompt.

A row holds prompt | response 1 | … | response N. A response sees the prompt and itself, and its positions go on where
the prompt's end, so every number is that of a row of its own. The image is encoded once, the prompt runs once, and in
the last layer only as far as the responses need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmbdhs.decoding import probe
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.logprobs.last_layer import LastLayer, last_layer
from mmbdhs.logprobs.packed_attention import PackedAttention
from mmbdhs.logprobs.responses import ResponseLogps, Responses, checked_responses, laid_out
from mmbdhs.logprobs.token_logps import token_logps
from mmbdhs.vlm import (
    DecoderInputs,
    TokenRows,
    capture_decoder_inputs,
    decoder_arguments,
    decoder_configs,
    find_text_decoder,
    not_every_layer,
    runnable,
    switched,
    text_inputs,
)


def response_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    *,
    temperature: float = 1.0,
    truncate_responses: bool = False,
) -> ResponseLogps:
    """Log-probabilities of N responses for each of B image prompts, with gradients; each prompt runs once.

    model: a VLM of `transformers`, in any wrapper that `unwrapped` takes off, in training or evaluation mode.
    prompts: for each prompt the processor's output (batch size 1), generation prompt included.
    responses: for each prompt N lists of token ids, ends of sequence included as far as they are to count.
    temperature: divides the logits.
    truncate_responses: cut responses at the end of the model's context; otherwise longer ones are an error.

    Raises ValueError for lists that do not fit and responses beyond the context, UnsupportedModelError for a model in
    which rows cannot be shared; `separate_logps` takes those.
    """
    model = runnable(model)
    ids = checked_responses(model, prompts, responses, temperature, truncate_responses)
    rows = [_packed(model, inputs, texts) for inputs, texts in zip(prompts, ids, strict=True)]
    decoder = find_text_decoder(model)
    lengths = [[len(text) for text in texts] for texts in ids]
    attention = PackedAttention(rows, lengths, decoder.config._attn_implementation == "eager")
    arguments = decoder_arguments(rows)
    with _attending(decoder, attention, arguments["inputs_embeds"].shape[1]):
        hidden = decoder(**arguments, use_cache=False).last_hidden_state
    _check_layers(decoder, attention.windowed)
    places = [_places_before(row.prompt_length, texts) for row, texts in zip(rows, lengths, strict=True)]
    before = torch.cat([hidden[row, index] for row, index in enumerate(places)])
    labels = torch.cat([text for texts in ids for text in texts])
    return laid_out(token_logps(model, before, labels.to(before.device), temperature), ids)


def _packed(model: nn.Module, inputs: Mapping[str, Any], texts: list[Tensor]) -> DecoderInputs:
    """The prompt and its responses behind one another, as the decoder takes them."""
    ids, together = inputs["input_ids"][0], torch.cat(texts)
    prompt = capture_decoder_inputs(model, inputs, len(ids))
    probe(model, prompt, ids, len(ids) + len(together))
    text = text_inputs(model, together) if prompt.further and len(together) else None
    embeds = model.get_input_embeddings()(together) if text is None else text.embeds
    steps = torch.cat([torch.arange(len(text), device=together.device) for text in texts])
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, embeds.to(prompt.embeds)]),
        positions=torch.cat([prompt.positions, prompt.positions[:, -1:] + 1 + steps], dim=1),
        indices=torch.cat([prompt.indices, len(ids) + steps]),
        further=_continued(prompt.further, {} if text is None else text.further, len(together)),
    )


def _continued(prompt: dict[str, Any], text: dict[str, Any], length: int) -> dict[str, Any]:
    """The decoder's other arguments for prompt and `length` tokens of text; where text has none its rows are 0."""

    def continued(before: Any, after: Any = None) -> Any:
        if not isinstance(before, TokenRows):
            return before
        zeros = before.rows.new_zeros(length, *before.rows.shape[1:])
        return TokenRows(torch.cat([before.rows, zeros if after is None else after.rows]))

    return {name: tree_map(continued, value, *([text[name]] if name in text else [])) for name, value in prompt.items()}


def _places_before(prompt: int, lengths: list[int]) -> list[int]:
    """Where in a row the token before each response token stands."""
    places, begin = [], prompt
    for length in lengths:
        places += [prompt - 1, *range(begin, begin + length - 1)][:length]
        begin += length
    return places


def _check_layers(decoder: nn.Module, windowed: list[bool]) -> None:
    """Only the last call of a layer may have been cut to its windows."""
    if not windowed:
        raise not_every_layer(0, 1)
    if any(windowed[:-1]):
        raise UnsupportedModelError(
            f"model: needs a decoder that runs the last of its layers once and last, got {type(decoder).__name__}"
        )


@contextmanager
def _attending(decoder: nn.Module, attention: PackedAttention, length: int) -> Iterator[None]:
    """The decoder's layers attend through `attention` in rows of `length` tokens, the last one only where it is read;
    checkpointed ones also when backward runs them again."""
    configs = decoder_configs(decoder)
    last = LastLayer(last_layer(decoder), attention, attention.windows(length), length, configs)

    def checkpointed(checkpoint: Callable, function: Callable, *args: Any, **kwargs: Any) -> Any:
        def run(*inner: Any, **more: Any) -> Any:
            with switched(configs, attention):
                return function(*inner, **more)

        return checkpoint(run, *args, **kwargs)

    layers = {m: f for m in decoder.modules() if (f := getattr(m, "_gradient_checkpointing_func", None)) is not None}
    try:
        for layer, checkpoint in layers.items():
            layer._gradient_checkpointing_func = partial(checkpointed, checkpoint)
        with switched(configs, attention), last.running():
            yield
    finally:
        for layer, checkpoint in layers.items():
            layer._gradient_checkpointing_func = checkpoint
