"""The door: let a vision-language model prepare the inputs of its text decoder, and stop it there.

Every VLM of `transformers` that writes image features into the token sequence does so before it calls its text
decoder. A forward pre-hook on that decoder records what it is about to receive and ends the forward, so the one
thing the library knows about model families is that they have a text decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers.masking_utils import create_masks_for_generate

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm.attention_interface import decoder_configs, mask_configs, switched
from mmbdhs.vlm.mask_rules import MaskRule, rule_of, stacked, stand_in, table_rule
from mmbdhs.vlm.text_decoder import find_text_decoder, image_token_id

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
class TokenRows:
    """An argument with a row for each token: [n, …]."""

    rows: Tensor


@dataclass(frozen=True)
class ImageRows:
    """An argument with a row for each image token: [k, …]."""

    rows: Tensor


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
    further: the decoder's other arguments, any nesting of containers around `TokenRows` and `ImageRows`.
    image_mask: bool [n], the tokens that the latter have rows for.
    """

    embeds: Tensor
    positions: Tensor
    image_positions: Tensor
    indices: Tensor
    prompt_length: int
    flat: bool = True
    rules: Rules = None
    further: dict[str, Any] = field(default_factory=dict)
    image_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, index: Tensor) -> DecoderInputs:
        """Keep the tokens at `index` (int64, ascending); each keeps the position id that it has."""
        index = index.to(self.embeds.device)
        image_mask, image_index = self.image_mask, index[:0]
        if image_mask is not None:
            image_mask = image_mask.index_select(0, index)
            image_index = (self.image_mask.cumsum(0) - 1).index_select(0, index)[image_mask]
        return replace(
            self,
            embeds=self.embeds.index_select(0, index),
            positions=self.positions.index_select(1, index),
            image_positions=torch.isin(index.cpu(), self.image_positions).nonzero().flatten(),
            indices=self.indices.index_select(0, index),
            further=tree_map(lambda leaf: _select_rows(leaf, index, image_index), self.further),
            image_mask=image_mask,
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


def capture_decoder_inputs(model: nn.Module, inputs: Mapping[str, Any], prompt_length: int) -> DecoderInputs:
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
    try:
        captured = _stop_at_decoder(model, inputs)
    except ValueError as error:
        raise ValueError(
            f"processor: wrote {len(image_positions)} image tokens, which {type(model).__name__} could not fill with "
            f"its image features: {error}"
        ) from error
    return _as_inputs(model, captured, image_positions, prompt_length)


def text_inputs(model: nn.Module, ids: Tensor) -> DecoderInputs:
    """The same for plain text, int64 [L]; all of it is prompt."""
    captured = _stop_at_decoder(model, {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])})
    return _as_inputs(model, captured, torch.empty(0, dtype=torch.int64), len(ids))


def _as_inputs(
    model: nn.Module, captured: dict[str, Any], image_positions: Tensor, prompt_length: int
) -> DecoderInputs:
    embeds = captured.pop("inputs_embeds", None)
    if embeds is None:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} must merge its image features into inputs_embeds, but its decoder "
            f"{type(find_text_decoder(model)).__name__} received "
            f"{sorted(name for name, value in captured.items() if value is not None)}"
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
        rules=_rules(model, captured.get("attention_mask"), embeds, prompt_length),
        **_further_arguments(model, captured, embeds.shape[1]),
    )


def decoder_arguments(rows: list[DecoderInputs]) -> dict[str, Any]:
    """Right-pad `rows` into the keyword arguments of one decoder call: inputs_embeds [B, n, hidden], position_ids,
    an explicit attention_mask (without one, gaps in the positions would be read as packing), and what else it takes."""
    pad = nn.utils.rnn.pad_sequence
    first, positions = rows[0], pad([row.positions.T for row in rows], batch_first=True).permute(2, 0, 1)
    return {
        "inputs_embeds": pad([row.embeds for row in rows], batch_first=True),
        "position_ids": positions[0] if first.flat else positions,
        "attention_mask": _mask_argument(rows),
        **tree_map(_collate, *(row.further for row in rows)),
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


def _stop_at_decoder(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    captured: dict[str, Any] = {}
    decoder = find_text_decoder(model)

    def record(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        captured.update(kwargs, **({"input_ids": args[0]} if args else {}))
        raise _AtTheDoor

    handle = decoder.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with switched(mask_configs(model, decoder), None):
            model(**inputs, use_cache=False)
    except _AtTheDoor:
        return captured
    finally:
        handle.remove()
    raise UnsupportedModelError(
        f"model: {type(model).__name__} must call its text decoder {type(decoder).__name__}, it did not"
    )


def _rules(model: nn.Module, mask: Any, embeds: Tensor, prompt_length: int) -> Rules:
    """What the decoder was about to receive as attention_mask. A 2-D mask is all ones: nothing is padded here.

    What the model prepares is for its prompt; to the response applies what decoding will make of generated tokens."""
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return None
    decoder = find_text_decoder(model)
    with switched(decoder_configs(decoder), None):
        generated = create_masks_for_generate(decoder.config, embeds, None, None)
    if isinstance(mask, Mapping) and isinstance(generated, Mapping) and mask.keys() <= generated.keys():
        return {kind: _rule(mask[kind], generated[kind], prompt_length) for kind in mask}
    if isinstance(mask, Mapping) or isinstance(generated, Mapping):
        raise UnsupportedModelError(
            f"model: {type(model).__name__} must prepare masks for the layer types of its decoder's config, got "
            f"{sorted(mask) if isinstance(mask, Mapping) else 'one mask'}"
        )
    return _rule(mask, generated, prompt_length)


def _rule(mask: Tensor | None, generated: Tensor | None, prompt_length: int) -> MaskRule:
    response = rule_of(generated)
    if not isinstance(mask, Tensor) or hasattr(mask, "rule"):
        return rule_of(mask).then(response, prompt_length)
    table = table_rule(mask)
    index = torch.arange(mask.shape[-1], device=mask.device)
    row, query = index[:1, None], index[prompt_length:, None]
    if not torch.equal(table(row, query, index[None]), response(row, query, index[None])):
        raise UnsupportedModelError(
            "model: needs a mask that treats a response's tokens as decoding does, got one of its own for them"
        )
    return table.then(response, prompt_length)


def _further_arguments(model: nn.Module, captured: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Sort the decoder's other arguments by their shapes. One that `select` could not cut would keep hidden tokens."""
    others = {name: value for name, value in captured.items() if name not in _REBUILT and not _says_nothing(value)}
    masks = [x for x in tree_leaves(others) if isinstance(x, Tensor) and x.dtype == torch.bool and x.numel() == length]
    image_mask = masks[0].reshape(-1) if masks else None
    images = int(image_mask.sum()) if masks else -1
    unknown = []

    def sort(name: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.shape[:2] == (1, length):
            return TokenRows(leaf[0])
        if isinstance(leaf, Tensor) and leaf.ndim > 1 and len(leaf) == images:
            return ImageRows(leaf)
        if not _says_nothing(leaf):
            unknown.append(name)
        return leaf

    further = {name: tree_map(partial(sort, name), value) for name, value in others.items()}
    if unknown:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} hands its decoder what cannot be cut token by token: {sorted(set(unknown))}"
        )
    return {"further": further, "image_mask": image_mask}


def _says_nothing(value: Any) -> bool:
    """About single tokens."""
    return value is None or isinstance(value, (bool, int, float, str))


def _select_rows(leaf: Any, index: Tensor, image_index: Tensor) -> Any:
    if isinstance(leaf, TokenRows):
        return TokenRows(leaf.rows.index_select(0, index))
    return ImageRows(leaf.rows.index_select(0, image_index)) if isinstance(leaf, ImageRows) else leaf


def _collate(*leaves: Any) -> Any:
    if isinstance(leaves[0], TokenRows):
        return nn.utils.rnn.pad_sequence([leaf.rows for leaf in leaves], batch_first=True)
    return torch.cat([leaf.rows for leaf in leaves]) if isinstance(leaves[0], ImageRows) else leaves[0]
