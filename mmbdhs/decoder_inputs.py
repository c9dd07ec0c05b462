"""The door: let a vision-language model prepare the inputs of its text decoder, and stop it there.

Every VLM of `transformers` that writes image features into the token sequence does so before it calls its text
decoder. A forward pre-hook on that decoder records what it is about to receive and ends the forward, so the one
thing the library knows about model families is that they have a text decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_IMAGE_TOKEN_ATTRIBUTES = ("image_token_id", "image_token_index")
# Arguments of a decoder call that say nothing about the tokens, or that are built anew for the kept tokens.
_REBUILT = {
    "input_ids",
    "inputs_embeds",
    "position_ids",
    "attention_mask",
    "past_key_values",
    "cache_position",
}


class UnsupportedModelError(Exception):
    """The model mixes tokens in a way under which leaving hidden tokens out is not the same as masking them."""


class _AtTheDoor(Exception):
    """Ends the forward once the decoder's inputs are recorded."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the text decoder of a VLM receives for one sequence of L tokens.

    embeds: [L, hidden], image features already merged in.
    positions: int64 [R, L]; R = 1 for plain position ids, 3 or 4 for M-RoPE.
    image_positions: int64 [k] on the CPU, where the example's image tokens stand.
    flat: True if the decoder takes position ids as [batch, L] rather than [R, batch, L].
    visual_mask, visual_features: bool [L] and a tuple of [visible, hidden], for decoders that add visual features
        inside their layers (the `visual_pos_masks` and `deepstack_visual_embeds` of Qwen3-VL).
    """

    embeds: Tensor
    positions: Tensor
    image_positions: Tensor
    flat: bool = True
    visual_mask: Tensor | None = None
    visual_features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, index: Tensor) -> DecoderInputs:
        """Keep the tokens at `index` (int64 [n], ascending); each keeps the position id it has."""
        index = index.to(self.embeds.device)
        kept = replace(
            self,
            embeds=self.embeds.index_select(0, index),
            positions=self.positions.index_select(1, index),
            image_positions=torch.isin(index.cpu(), self.image_positions).nonzero().flatten(),
        )
        if self.visual_mask is None:
            return kept
        rank = self.visual_mask.cumsum(0) - 1
        mask = self.visual_mask.index_select(0, index)
        rows = rank.index_select(0, index)[mask]
        features = tuple(feature.index_select(0, rows) for feature in self.visual_features)
        return replace(kept, visual_mask=mask, visual_features=features)

    def show(self, visible: Tensor, length: int | None = None) -> DecoderInputs:
        """Leave out the image tokens that are not in `visible` (int64 [v], indices among the image tokens) and
        every token from `length` on. To a causal decoder a key that nobody may see is the same as no key."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[self.image_positions] = False
        keep[self.image_positions[visible]] = True
        if length is not None:
            keep[length:] = False
        return self.select(keep.nonzero().flatten())


def decoder_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> DecoderInputs:
    """Encode the images of `inputs` (a processor's output with batch size 1) and return what `model` would hand to
    its text decoder. Raises UnsupportedModelError for a model whose decoder never sees the image tokens."""
    captured = _stop_at_decoder(model, inputs)
    embeds = captured.get("inputs_embeds")
    if embeds is None:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} must merge its image features into inputs_embeds, but its decoder "
            f"{type(text_decoder(model)).__name__} received {sorted(k for k, v in captured.items() if v is not None)}"
        )
    _refuse_unknown_extras(model, captured, embeds.shape[1])
    positions = captured.get("position_ids")
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    visual_mask = captured.get("visual_pos_masks")
    return DecoderInputs(
        embeds=embeds[0],
        positions=positions[:, 0] if positions.ndim == 3 else positions[:1],
        image_positions=_image_positions(model, inputs["input_ids"][0]),
        flat=positions.ndim != 3,
        visual_mask=None if visual_mask is None else visual_mask.reshape(-1),
        visual_features=tuple(captured.get("deepstack_visual_embeds") or ()),
    )


def decoder_arguments(rows: list[DecoderInputs]) -> dict[str, Any]:
    """Right-pad `rows` into the keyword arguments of one decoder call: inputs_embeds [B, L, hidden], position_ids,
    and an explicit attention_mask int64 [B, L] (without one, gaps in the positions would be read as packing)."""
    pad = nn.utils.rnn.pad_sequence
    positions = pad([row.positions.T for row in rows], batch_first=True).permute(2, 0, 1)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    arguments: dict[str, Any] = {
        "inputs_embeds": pad([row.embeds for row in rows], batch_first=True),
        "position_ids": positions[0] if rows[0].flat else positions,
        "attention_mask": mask.to(rows[0].embeds.device, torch.int64),
    }
    if rows[0].visual_mask is not None:
        arguments["visual_pos_masks"] = pad([row.visual_mask for row in rows], batch_first=True)
        layers = zip(*(row.visual_features for row in rows), strict=True)
        arguments["deepstack_visual_embeds"] = [torch.cat(layer) for layer in layers]
    return arguments


def text_decoder(model: nn.Module) -> nn.Module:
    """The module that runs the decoder layers over `inputs_embeds`."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    if decoder is None or decoder is model:
        raise UnsupportedModelError(
            f"model: needs a text decoder of its own behind get_decoder(), got {type(model).__name__} without one"
        )
    return decoder


def longest_sequence(model: nn.Module, generated: int) -> float:
    """How many tokens of prompt and reference the decoder can take if up to `generated` follow them. Raises
    UnsupportedModelError for a decoder in which leaving tokens out would not be the same as masking them."""
    config = text_decoder(model).config
    types = getattr(config, "layer_types", None)
    unknown = sorted(set(types or ()) - {"full_attention", "sliding_attention"})
    if unknown or getattr(config, "alibi", False):
        raise UnsupportedModelError(
            f"model: needs layers that see token order only through position ids, got {unknown or ['alibi']}"
        )
    implementation = getattr(config, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"model: needs 'sdpa' or 'eager' attention over its prompts, got {implementation!r}; "
            "call model.set_attn_implementation('sdpa')"
        )
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    # A window is counted by token index; within it dropping changes nothing.
    return min(longest, window - generated) if window and slides else longest


def image_token_id(model: nn.Module) -> int:
    """The placeholder id that stands once for each image feature vector."""
    for name in _IMAGE_TOKEN_ATTRIBUTES:
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            return value
    raise UnsupportedModelError(
        f"model: needs image tokens in its decoder (config.image_token_id), {type(model.config).__name__} has none"
    )


def _stop_at_decoder(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    captured: dict[str, Any] = {}

    def record(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        captured.update(kwargs, **({"input_ids": args[0]} if args else {}))
        raise _AtTheDoor

    handle = text_decoder(model).register_forward_pre_hook(record, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _AtTheDoor:
        return captured
    finally:
        handle.remove()
    raise UnsupportedModelError(
        f"model: {type(model).__name__} must call its text decoder {type(text_decoder(model)).__name__}, it did not"
    )


def _refuse_unknown_extras(model: nn.Module, captured: Mapping[str, Any], length: int) -> None:
    """An argument per token that `select` does not know would silently keep its hidden tokens."""
    known = _REBUILT | {"visual_pos_masks", "deepstack_visual_embeds"}
    unknown = [name for name, value in captured.items() if name not in known and _has_length(value, length)]
    if unknown:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} hands its decoder per-token arguments that cannot be dropped yet: {unknown}"
        )
    mask = captured.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()):
        return
    if mask is not None:
        raise UnsupportedModelError(
            f"model: needs plain causal attention in its decoder, {type(model).__name__} prepares a mask of its own"
        )


def _has_length(value: Any, length: int) -> bool:
    if isinstance(value, Tensor):
        return length in value.shape
    return isinstance(value, Iterable) and not isinstance(value, str) and any(_has_length(v, length) for v in value)


def _image_positions(model: nn.Module, input_ids: Tensor) -> Tensor:
    return (input_ids == image_token_id(model)).nonzero().flatten().cpu()
