"""The door: let a vision-language model prepare the inputs of its text decoder, and stop it there.

Every VLM of `transformers` that writes image features into the token sequence does so before it calls its text
decoder. A forward pre-hook on that decoder records what it is about to receive and ends the forward. So the one thing
that the library knows about model families is that they have a text decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers.masking_utils import create_masks_for_generate

from mmbdhs.errors import ExampleError, UnsupportedModelError
from mmbdhs.vlm.attention_interface import attention_through
from mmbdhs.vlm.mask_rules import MaskRule, rule_mask, rule_of, stacked, table_rule
from mmbdhs.vlm.output_head import replaced_forward
from mmbdhs.vlm.vlm import VLM

# Arguments of a decoder call that the library makes itself for the kept tokens, or that do not describe tokens.
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


class ModuleCall(NamedTuple):
    """A module of the model, and the arguments with which the model calls it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class VisionOutput(NamedTuple):
    """A module of the model, and what it returns for an example. Some models change it, so it serves once."""

    module: nn.Module
    output: Any


class _AtTheDoor(Exception):
    """Ends the forward once a module's arguments are recorded."""


@dataclass(frozen=True)
class TokenRows:
    """An argument with one row for each token, [n, …]."""

    rows: Tensor


@dataclass(frozen=True)
class ImageRows:
    """An argument with one row for each image token, [k, …]."""

    rows: Tensor


@dataclass(frozen=True)
class DecoderInputs:
    """What the text decoder receives for one sequence of L tokens, or for the n of them that are kept.

    embeds: [n, hidden], image features already merged in.
    positions: int64 [R, n]; R = 1 for plain position ids, 3 or 4 for M-RoPE.
    image_positions: int64 [k] on the CPU, the places of the example's image tokens among the n.
    indices: int64 [n], ascending, the places of the n tokens in the whole sequence.
    prompt_length: number of tokens in the prompt of the whole sequence; a response follows.
    positions_2d: whether the decoder takes position ids as [batch, n] and not as [R, batch, n].
    rules: the masks that the model prepares for its decoder, in a dict if it does so by layer type; None where the
        decoder makes them itself.
    extra_kwargs: the decoder's other arguments, any nesting of containers around `TokenRows` and `ImageRows`.
    image_mask: bool [n], the tokens for which `ImageRows` have a row.
    """

    embeds: Tensor
    positions: Tensor
    image_positions: Tensor
    indices: Tensor
    prompt_length: int
    positions_2d: bool = True
    rules: Rules = None
    extra_kwargs: dict[str, Any] = field(default_factory=dict)
    image_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, index: Tensor) -> DecoderInputs:
        """Keep the tokens at `index` (int64, ascending); each keeps its position id."""
        index = index.to(self.embeds.device)
        image_mask, image_index = self.image_mask, index[:0]
        if image_mask is not None:
            row = image_mask.cumsum(0) - 1  # of each image token among the image rows
            image_mask = image_mask.index_select(0, index)
            image_index = row.index_select(0, index)[image_mask]
        return replace(
            self,
            embeds=self.embeds.index_select(0, index),
            positions=self.positions.index_select(1, index),
            image_positions=torch.isin(index.cpu(), self.image_positions).nonzero().flatten(),
            indices=self.indices.index_select(0, index),
            extra_kwargs=tree_map(lambda leaf: _select_rows(leaf, index, image_index), self.extra_kwargs),
            image_mask=image_mask,
        )

    def keep_visible(self, visible: Tensor, length: int | None = None) -> DecoderInputs:
        """Drop the hidden image tokens, and every token from `length` on.

        For a causal decoder, a key that nobody may see is the same as no key.

        visible: int64 [v], the indices among the image tokens of those that stay.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[self.image_positions] = False
        keep[self.image_positions[visible]] = True
        if length is not None:
            keep[length:] = False
        return self.select(keep.nonzero().flatten())


def capture_decoder_inputs(
    vlm: VLM, inputs: Mapping[str, Any], prompt_length: int, vision: VisionOutput | None = None
) -> DecoderInputs:
    """Encode the images of `inputs` and record what the model would hand to its text decoder.

    inputs: a processor's output with batch size 1.
    prompt_length: number of tokens before the response.
    vision: what the vision tower makes of these images; None to run it.

    Raises UnsupportedModelError for a model whose decoder never sees image tokens, ExampleError if the processor
    wrote no placeholder for them.
    """
    image_positions = (inputs["input_ids"][0] == vlm.image_token_id).nonzero().flatten().cpu()
    if not len(image_positions):
        raise ExampleError(
            f"processor: needs to write image tokens (id {vlm.image_token_id}, as the model's config has it) for "
            f"each image, wrote 0 among {inputs['input_ids'].shape[1]} tokens"
        )
    try:
        with _answering(vision):
            captured = _stop_at_decoder(vlm, inputs)
    except ValueError as error:
        raise ExampleError(
            f"processor: wrote {len(image_positions)} image tokens, which {vlm.name} could not fill with "
            f"its image features: {error}"
        ) from error
    return _as_inputs(vlm, captured, image_positions, prompt_length)


def text_inputs(vlm: VLM, ids: Tensor) -> DecoderInputs:
    """Record what the model would hand to its decoder for plain text, int64 [L], all of it prompt."""
    captured = _stop_at_decoder(vlm, {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])})
    return _as_inputs(vlm, captured, torch.empty(0, dtype=torch.int64), len(ids))


def _as_inputs(vlm: VLM, captured: dict[str, Any], image_positions: Tensor, prompt_length: int) -> DecoderInputs:
    embeds = captured.pop("inputs_embeds", None)
    if embeds is None:
        raise UnsupportedModelError(
            f"model: {vlm.name} must merge its image features into inputs_embeds, but its decoder "
            f"{type(vlm.decoder).__name__} received {sorted(name for name, x in captured.items() if x is not None)}"
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
        positions_2d=positions.ndim != 3,
        rules=_rules(vlm, captured.get("attention_mask"), embeds, prompt_length),
        **_extra_arguments(vlm, captured, embeds.shape[1]),
    )


def decoder_arguments(rows: list[DecoderInputs]) -> dict[str, Any]:
    """The keyword arguments of one decoder call over `rows`, right-padded.

    The attention mask is explicit: without one, `transformers` would take gaps in the positions for packed sequences.
    """
    pad = nn.utils.rnn.pad_sequence
    first, positions = rows[0], pad([row.positions.T for row in rows], batch_first=True).permute(2, 0, 1)
    return {
        "inputs_embeds": pad([row.embeds for row in rows], batch_first=True),
        "position_ids": positions[0] if first.positions_2d else positions,
        "attention_mask": _mask_argument(rows),
        **tree_map(_collate, *(row.extra_kwargs for row in rows)),
    }


def _mask_argument(rows: list[DecoderInputs]) -> Any:
    """A 2-D mask int64 [B, n] from which the decoder makes its own, or the masks that the model would prepare."""
    lengths, device = torch.tensor([len(row) for row in rows]), rows[0].embeds.device
    size = int(lengths.max())

    def batched(choose: Callable[[Any], MaskRule]) -> Tensor:
        return rule_mask(stacked([choose(row.rules) for row in rows]), len(rows), size, size, device)

    rules = rows[0].rules
    if rules is None:
        return (torch.arange(size) < lengths[:, None]).to(device, torch.int64)
    if isinstance(rules, MaskRule):
        return batched(lambda rules: rules)
    return {kind: batched(itemgetter(kind)) for kind in rules}


def _stop_at_decoder(vlm: VLM, inputs: Mapping[str, Any]) -> dict[str, Any]:
    call = stop_at(vlm, inputs)
    if call is None:
        raise UnsupportedModelError(
            f"model: {vlm.name} must call its text decoder {type(vlm.decoder).__name__}, it did not"
        )
    return {**call.kwargs, **({"input_ids": call.args[0]} if call.args else {})}


def stop_at(vlm: VLM, inputs: Mapping[str, Any], modules: Iterable[nn.Module] = ()) -> ModuleCall | None:
    """Run the model until it calls its decoder or, with floating-point numbers, one of `modules`. Returns this call,
    which is not made; None if there is none."""
    calls: list[ModuleCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        numbers = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if module is vlm.decoder or any(leaf.is_floating_point() for leaf in numbers):
            calls.append(ModuleCall(module, args, kwargs))
            raise _AtTheDoor

    with ExitStack() as stack:
        for module in (*modules, vlm.decoder):
            stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        try:
            with attention_through(None, vlm.mask_configs):
                vlm.model(**inputs, use_cache=False)
        except _AtTheDoor:
            return calls[0]
    return None


@contextmanager
def _answering(vision: VisionOutput | None) -> Iterator[None]:
    """For the length of the context the module returns its output at its first call."""
    if vision is None:
        yield
        return
    own, outputs = vision.module.forward, [vision.output]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return outputs.pop() if outputs else own(*args, **kwargs)

    with replaced_forward(vision.module, forward):
        yield


def _rules(vlm: VLM, mask: Any, embeds: Tensor, prompt_length: int) -> Rules:
    """The rules of the attention mask that the decoder was about to receive.

    A 2-D mask says nothing, since nothing is padded here. What the model prepares is for its prompt; the response
    follows the masks that the decoder makes for generated tokens.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return None
    with attention_through(None, vlm.decoder_configs):
        generated = create_masks_for_generate(vlm.decoder.config, embeds, None, None)
    if isinstance(mask, Mapping) and isinstance(generated, Mapping) and mask.keys() <= generated.keys():
        return {kind: _rule(mask[kind], generated[kind], prompt_length) for kind in mask}
    if isinstance(mask, Mapping) or isinstance(generated, Mapping):
        raise UnsupportedModelError(
            f"model: {vlm.name} must prepare masks for the layer types of its decoder's config, got "
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


def _extra_arguments(vlm: VLM, captured: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Sort the decoder's other arguments by their shapes; one that `select` could not cut would keep hidden tokens.

    Three kinds occur. Gemma 3n and Gemma 4 bring per-layer inputs [1, L, …], one row a token. Qwen3-VL brings the bool
    mask of its visual tokens and deepstack features [k, hidden], one row for each token in that mask; so does
    Granite 4 Vision. Everything else must not describe tokens at all. A wrong guess cannot pass: the exactness check
    compares kept with masked tokens on the model at hand.
    """
    others = {name: value for name, value in captured.items() if name not in _REBUILT and not _is_scalar(value)}
    leaves = [leaf for leaf in tree_leaves(others) if isinstance(leaf, Tensor)]
    image_mask = next((x.reshape(-1) for x in leaves if x.dtype == torch.bool and x.numel() == length), None)
    image_rows = None if image_mask is None else int(image_mask.sum())
    unknown = []

    def sort(name: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.shape[:2] == (1, length):
            return TokenRows(leaf[0])
        if isinstance(leaf, Tensor) and leaf.ndim > 1 and len(leaf) == image_rows:
            return ImageRows(leaf)
        if not _is_scalar(leaf):
            unknown.append(name)
        return leaf

    extra_kwargs = {name: tree_map(partial(sort, name), value) for name, value in others.items()}
    if unknown:
        raise UnsupportedModelError(
            f"model: {vlm.name} hands its decoder what cannot be cut token by token: {sorted(set(unknown))}"
        )
    return {"extra_kwargs": extra_kwargs, "image_mask": image_mask}


def _is_scalar(value: Any) -> bool:
    """True for scalars and None, which carry no per-token data."""
    return value is None or isinstance(value, (bool, int, float, str))


def _select_rows(leaf: Any, index: Tensor, image_index: Tensor) -> Any:
    if isinstance(leaf, TokenRows):
        return TokenRows(leaf.rows.index_select(0, index))
    return ImageRows(leaf.rows.index_select(0, image_index)) if isinstance(leaf, ImageRows) else leaf


def _collate(*leaves: Any) -> Any:
    if isinstance(leaves[0], TokenRows):
        return nn.utils.rnn.pad_sequence([leaf.rows for leaf in leaves], batch_first=True)
    return torch.cat([leaf.rows for leaf in leaves]) if isinstance(leaves[0], ImageRows) else leaves[0]
