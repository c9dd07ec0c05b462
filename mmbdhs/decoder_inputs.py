"""The door: let a vision-language model prepare the inputs of its text decoder, and stop it there.

Every VLM of `transformers` that writes image features into the token sequence does so before it calls its text
decoder. A forward pre-hook on that decoder records what it is about to receive and ends the forward, so the one
thing the library knows about model families is that they have a text decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.attention_interface import mask_configs, switched
from mmbdhs.mask_rules import MaskRule, rule_of, stacked, stand_in, table_rule
from mmbdhs.text_decoder import UnsupportedModelError, image_token_id, text_decoder

# Arguments of a decoder call that are built anew for the kept tokens, or that say nothing about tokens.
_REBUILT = {
    "input_ids",
    "inputs_embeds",
    "position_ids",
    "attention_mask",
    "past_key_values",
    "cache_position",
    "use_cache",
    "logits_to_keep",
}

Rules = MaskRule | dict[str, MaskRule] | None


class _AtTheDoor(Exception):
    """Ends the forward once the decoder's inputs are recorded."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the text decoder of a VLM receives for one sequence of L tokens, or for the n of them that are kept.

    embeds: [n, hidden], image features already merged in.
    positions: int64 [R, n]; R = 1 for plain position ids, 3 or 4 for M-RoPE.
    image_positions: int64 [k] on the CPU, which of the n are the example's image tokens.
    indices: int64 [n], ascending, where the tokens stand in the whole sequence.
    prompt_length: how many tokens of the whole sequence are its prompt; a response follows.
    flat: True if the decoder takes position ids as [batch, n] rather than [R, batch, n].
    rules: the masks that the model prepares for its decoder, in a dict if it does so by layer type; None where the
        decoder makes them itself.
    by_token: further arguments of the decoder, each [n, …].
    of_images: those that have a row for each token of the bool argument `by_token[image_mask]`, as lists of [k, …].
    """

    embeds: Tensor
    positions: Tensor
    image_positions: Tensor
    indices: Tensor
    prompt_length: int
    flat: bool = True
    rules: Rules = None
    by_token: dict[str, Tensor] = field(default_factory=dict)
    of_images: dict[str, list[Tensor]] = field(default_factory=dict)
    image_mask: str = ""

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, index: Tensor) -> DecoderInputs:
        """Keep the tokens at `index` (int64, ascending); each keeps the position id that it has."""
        index = index.to(self.embeds.device)
        rows = torch.empty(0)
        if self.image_mask:
            mask = self.by_token[self.image_mask]
            rows = (mask.cumsum(0) - 1).index_select(0, index)[mask.index_select(0, index)]
        return replace(
            self,
            embeds=self.embeds.index_select(0, index),
            positions=self.positions.index_select(1, index),
            image_positions=torch.isin(index.cpu(), self.image_positions).nonzero().flatten(),
            indices=self.indices.index_select(0, index),
            by_token={name: value.index_select(0, index) for name, value in self.by_token.items()},
            of_images={name: [x.index_select(0, rows) for x in values] for name, values in self.of_images.items()},
        )

    def show(self, visible: Tensor, length: int | None = None) -> DecoderInputs:
        """Leave out the image tokens that are not in `visible` (int64 [v], indices among the image tokens) and
        every token from `length` on. To a causal decoder a key that nobody may see is the same as no key."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[self.image_positions] = False
        keep[self.image_positions[visible]] = True
        if length is not None:
            keep[length:] = False
        return self.select(keep.nonzero().flatten())


def decoder_inputs(model: nn.Module, inputs: Mapping[str, Any], prompt_length: int) -> DecoderInputs:
    """Encode the images of `inputs` (a processor's output with batch size 1) and return what `model` would hand to
    its text decoder. prompt_length: tokens before the response.

    Raises UnsupportedModelError for a model whose decoder never sees the image tokens, ValueError if the processor
    wrote no placeholder for them."""
    image_positions = (inputs["input_ids"][0] == image_token_id(model)).nonzero().flatten().cpu()
    if not len(image_positions):
        raise ValueError(
            f"processor: needs to write image tokens (id {image_token_id(model)}, as the model's config has it) for "
            f"each image, wrote 0 among {inputs['input_ids'].shape[1]} tokens"
        )
    captured = _stop_at_decoder(model, inputs, len(image_positions))
    embeds = captured.pop("inputs_embeds", None)
    if embeds is None:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} must merge its image features into inputs_embeds, but its decoder "
            f"{type(text_decoder(model)).__name__} received {sorted(k for k, v in captured.items() if v is not None)}"
        )
    positions = captured.get("position_ids")
    indices = torch.arange(embeds.shape[1], device=embeds.device)
    if positions is None:
        positions = indices[None]
    return DecoderInputs(
        embeds=embeds[0],
        positions=positions[:, 0] if positions.ndim == 3 else positions[:1],
        image_positions=image_positions,
        indices=indices,
        prompt_length=prompt_length,
        flat=positions.ndim != 3,
        rules=_rules(captured.get("attention_mask")),
        **_further_arguments(model, captured, embeds.shape[1]),
    )


def decoder_arguments(rows: list[DecoderInputs]) -> dict[str, Any]:
    """Right-pad `rows` into the keyword arguments of one decoder call: inputs_embeds [B, n, hidden], position_ids,
    an explicit attention_mask (without one, gaps in the positions would be read as packing), and what else it takes."""
    pad = nn.utils.rnn.pad_sequence
    first, positions = rows[0], pad([row.positions.T for row in rows], batch_first=True).permute(2, 0, 1)
    by_token = {name: pad([row.by_token[name] for row in rows], batch_first=True) for name in first.by_token}
    of_images = {
        name: [torch.cat(parts) for parts in zip(*(row.of_images[name] for row in rows), strict=True)]
        for name in first.of_images
    }
    return {
        "inputs_embeds": pad([row.embeds for row in rows], batch_first=True),
        "position_ids": positions[0] if first.flat else positions,
        "attention_mask": _mask_argument(rows),
        **by_token,
        **of_images,
    }


def _mask_argument(rows: list[DecoderInputs]) -> Any:
    """A 2-D mask int64 [B, n], from which the decoder makes its own, or the masks that the model would prepare."""
    lengths, device = torch.tensor([len(row) for row in rows]), rows[0].embeds.device
    size = int(lengths.max())

    def together(choose: Callable[[Any], MaskRule]) -> Tensor:
        return stand_in(stacked([choose(row.rules) for row in rows]), len(rows), size, size, device)

    rules = rows[0].rules
    if rules is None:
        return (torch.arange(size) < lengths[:, None]).to(device, torch.int64)
    if isinstance(rules, MaskRule):
        return together(lambda rules: rules)
    return {kind: together(lambda rules, kind=kind: rules[kind]) for kind in rules}


def _stop_at_decoder(model: nn.Module, inputs: Mapping[str, Any], image_tokens: int) -> dict[str, Any]:
    captured: dict[str, Any] = {}
    decoder = text_decoder(model)

    def record(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        captured.update(kwargs, **({"input_ids": args[0]} if args else {}))
        raise _AtTheDoor

    handle = decoder.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with switched(mask_configs(model, decoder), None):
            model(**inputs, use_cache=False)
    except _AtTheDoor:
        return captured
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"processor: wrote {image_tokens} image tokens, which {type(model).__name__} could not fill with its "
            f"image features: {error}"
        ) from error
    finally:
        handle.remove()
    raise UnsupportedModelError(
        f"model: {type(model).__name__} must call its text decoder {type(decoder).__name__}, it did not"
    )


def _rules(mask: Any) -> Rules:
    """What the decoder was about to receive as attention_mask. A 2-D mask is all ones: nothing is padded here."""
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return None
    if isinstance(mask, Mapping):
        return {kind: _rule(value) for kind, value in mask.items()}
    return _rule(mask)


def _rule(mask: Tensor | None) -> MaskRule:
    made_otherwise = isinstance(mask, Tensor) and not hasattr(mask, "rule")
    return table_rule(mask) if made_otherwise else rule_of(mask)


def _further_arguments(model: nn.Module, captured: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Sort the decoder's other arguments by their shapes. One that `select` could not cut would keep hidden tokens."""
    others = {name: value for name, value in captured.items() if name not in _REBUILT and _holds_tensors(value)}
    by_token = {
        name: value[0] for name, value in others.items() if isinstance(value, Tensor) and value.shape[:2] == (1, length)
    }
    of_images = {name: list(value) for name, value in others.items() if isinstance(value, (list, tuple))}
    masks = [name for name, value in by_token.items() if value.dtype == torch.bool and value.ndim == 1]
    image_mask = masks[0] if of_images and len(masks) == 1 else ""
    count = int(by_token[image_mask].sum()) if image_mask else -1
    unknown = others.keys() - by_token.keys() - {n for n, v in of_images.items() if all(len(x) == count for x in v)}
    if unknown:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} hands its decoder what cannot be cut token by token: {sorted(unknown)}"
        )
    return {"by_token": by_token, "of_images": of_images, "image_mask": image_mask}


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensors, value)))
