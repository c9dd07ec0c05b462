"""`masked_attention` as an attention implementation of transformers, for any model: see `register_attention`.

Layers of a causal decoder get the visible keys of each row, bool [N, L], in place of a mask over pairs of tokens. A
single new token gets SDPA's mask, bool [N, 1, 1, L], which holds its visible keys by whatever rule the model has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.native import masked_attention

_NAME = "mmbdhs"
_LOG = logging.getLogger("mmbdhs")
_ANNOUNCED: set[tuple[str, str]] = set()  # kinds of layers, and their paths
# Arguments by which layers of transformers ask for more than plain attention. Others pass through from the caller.
_UNKNOWN = ("dropout", "position_bias", "s_aux", "sinks", "indices", "block_indices", "cache")


def register_attention() -> None:
    """Let models of transformers attend through `masked_attention`: `model.set_attn_implementation("mmbdhs")`.

    Keys where the 2-D `attention_mask` is 0 are then skipped, in a forward pass, a backward pass and `generate`, and no
    mask over pairs of tokens is made. Results are those of "sdpa" and "eager" up to rounding, except that a query that
    sees no key (padding on the left) gets 0, where "eager" averages all values. Layers that are not causal, as
    in vision towers, run in SDPA as before. The logger "mmbdhs" names the path of each kind of layer once.

    Raises UnsupportedModelError, while the model runs, for what the op has not: windows or chunks shorter than the
    prompt, images that see themselves both ways, packed sequences or 4-D masks (each where several tokens are run at
    once), dropout in attention, attention weights as outputs, biases and sinks, head sizes other than 32 … 256 in steps
    of 8, and dtypes other than float32, bfloat16 and float16.
    """
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _make_mask)


def _make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """The registered masks; the signature is that of transformers' mask functions.

    attention_mask: bool [N, at most all keys].
    Returns bool [N, L] or [N, 1, 1, L] (see the module), or SDPA's own mask where attention is not causal.
    """
    if q_length == 1 or mask_function is bidirectional_mask_function:
        options = {**others, "mask_function": mask_function, "attention_mask": attention_mask, "device": device}
        options["allow_is_causal_skip"] = False
        mask: Tensor | None = sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **options)
        return mask
    # A static cache has rows for later tokens too, which nothing sees, and gives its offset as a tensor.
    keys = int(q_offset) + q_length
    unbounded = local_size is not None and allow_is_causal_skip and keys <= local_size
    if kv_offset or not (unbounded or mask_function is causal_mask_function):
        got = "a mask rule of its own (images that see themselves both ways, packed sequences or similar)"
        if local_size is not None and allow_is_causal_skip:
            got = f"windows or chunks of {local_size} tokens, and {keys} keys"
        raise UnsupportedModelError(f"model: needs causal attention to all visible keys, got {got}")
    if attention_mask is None:
        return torch.ones(batch_size, keys, dtype=torch.bool, device=device)
    return functional.pad(attention_mask, (0, keys - attention_mask.shape[1]))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registered attention; its signature is that of transformers' attention functions.

    query: [N, Hq, Lq, D].
    key, value: [N, Hkv, at least L, D].
    attention_mask: as `_make_mask` returns it.
    Returns the output [N, Lq, Hq, D], and None for the attention weights.
    """
    is_causal = others.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None or (attention_mask.ndim == 4 and not is_causal):
        _announce(module, "PyTorch's SDPA: it is not causal, or has no mask")
        options = {"dropout": dropout, "scaling": scaling, "softcap": softcap, **others}
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **options)
    _check_plain(module, is_causal or attention_mask.ndim != 2, {"dropout": dropout or None, **others})
    visible, causal = _visible_keys(module, attention_mask)
    keys = visible.shape[1]
    _announce(module, "mmbdhs::masked_attention")
    try:
        out, _ = masked_attention(query, key[:, :, :keys], value[:, :, :keys], visible, causal, scaling, softcap or 0.0)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"model: {type(module).__name__} needs what masked_attention has not: {error}"
        ) from error
    return out.transpose(1, 2).contiguous(), None


def _check_plain(module: nn.Module, causal: bool, arguments: dict[str, Any]) -> None:
    """Refuse a layer that asks for more than plain attention.

    causal: whether the layer is as causal as its mask.
    """
    asked = [name for name in _UNKNOWN if arguments.get(name) is not None]
    asked += ["output_attentions"] * bool(arguments.get("output_attentions")) + ["is_causal=False"] * (not causal)
    if asked:
        raise UnsupportedModelError(f"model: needs plain attention, {type(module).__name__} asks for {asked}")


def _visible_keys(module: nn.Module, mask: Tensor) -> tuple[Tensor, bool]:
    """The visible keys of each row, bool [N, L], and whether a query sees no later ones."""
    if mask.dtype == torch.bool and mask.ndim == 2:
        return mask, True
    if mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1):
        return mask[:, 0, 0], False
    raise UnsupportedModelError(
        "attention_mask: needs 2 dimensions and zeros at hidden tokens, "
        f"{type(module).__name__} got {mask.dtype} {list(mask.shape)}"
    )


def _announce(module: nn.Module, path: str) -> None:
    """Say once where layers of this kind attend. A graph that is compiled has no room for logs."""
    kind = type(module).__name__, path
    if not torch.compiler.is_compiling() and kind not in _ANNOUNCED:
        _ANNOUNCED.add(kind)
        _LOG.info("the attention of %s runs in %s", *kind)
