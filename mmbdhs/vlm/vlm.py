"""All that the library knows about one vision-language model, found out once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm.attention_interface import decoder_configs, mask_configs
from mmbdhs.vlm.text_decoder import find_text_decoder, modules_around
from mmbdhs.vlm.unwrap import require_whole_parameters, unwrap
from mmbdhs.vlm.vocabulary import Vocabulary

_ATTRIBUTE = "_mmbdhs_vlm"  # of the model, which owns its VLM
_IMAGE_TOKEN_ATTRIBUTES = ("image_token_id", "image_token_index")


class VLM:
    """A vision-language model of `transformers` and what is known about it.

    custom_head: whether logits need the model's own forward after its decoder, because it caps or scales them.
    custom_step: whether a generated token needs the model's own forward before its decoder, because that takes more
        than one embedding of a token.
    exact_tokens: up to how many tokens a prompt without its hidden tokens was found to equal the masked prompt;
        -1 before the first check.
    decoded_tokens: the same for decoding a token after a prompt.
    batches_vision: whether the vision tower makes of several examples' images what it makes of each; None before the
        first check.
    mixes_vision: the same for images with different numbers of tiles or patches.
    vocabularies: what the ids of each tokenizer mean to the model.
    kept_steps: what decoding keeps on a GPU for its next call; None without any.
    lock: held while the model runs with the library's hooks, which serve one thread at a time.

    `VLM.of(model)` returns the same object for the same model, so every check runs once. The model owns that object,
    and the object refers to the model weakly: deleting the model frees both at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = ref(model)
        self.vocabularies: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()
        self.lock = threading.RLock()
        self._holders = 0
        self._restore_mode = _nothing
        self.forget_checks()

    def forget_checks(self) -> None:
        """Forget what the checks found and what decoding keeps, after a change of the model's modules."""
        self.custom_head = False
        self.custom_step = False
        self.exact_tokens = -1
        self.decoded_tokens = -1
        self.batches_vision: bool | None = None
        self.mixes_vision: bool | None = None
        self.kept_steps: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> VLM:
        """The VLM of a model, which may be inside torch.compile, (Distributed)DataParallel or PEFT.

        Raises UnsupportedModelError for wrappers without which the model does not work.
        """
        inner = unwrap(model)
        known = vars(inner).get(_ATTRIBUTE)
        if known is None or known.model is not inner:  # a shallow copy of the model brings its original's along
            known = cls(inner)
            object.__setattr__(inner, _ATTRIBUTE, known)
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles of a model begin without a VLM."""
        return type(None), ()

    @property
    def model(self) -> PreTrainedModel:
        """The model without its wrappers."""
        model = self._model()
        if model is None:
            raise ReferenceError("model: has been deleted while it was in use")
        return model

    @property
    def name(self) -> str:
        """The class of the model, for messages."""
        return type(self.model).__name__

    @cached_property
    def decoder(self) -> PreTrainedModel:
        """The module that runs the decoder layers. Raises UnsupportedModelError if there is none."""
        return find_text_decoder(self.model)

    @cached_property
    def around_decoder(self) -> list[nn.Module]:
        """The outermost modules that the decoder is no part of, without the embeddings of tokens."""
        around = modules_around(self.model, self.decoder)
        known = {self.decoder, *around, self.model.get_input_embeddings(), self.model.get_output_embeddings()}
        return [child for module in around for child in module.children() if child not in known]

    @cached_property
    def decoder_configs(self) -> list[PreTrainedConfig]:
        """The configurations that the decoder's layers read."""
        return decoder_configs(self.decoder)

    @cached_property
    def mask_configs(self) -> list[PreTrainedConfig]:
        """The decoder's configurations and those by which the modules around it may build masks."""
        return mask_configs(self.model, self.decoder)

    @property
    def context_length(self) -> float:
        """How many tokens the decoder can take; infinity where the configuration does not say."""
        return getattr(self.decoder.config, "max_position_embeddings", None) or float("inf")

    @property
    def embedding_count(self) -> int:
        """How many token ids the model has embeddings for."""
        embeddings: Any = self.model.get_input_embeddings()
        count: int = embeddings.weight.shape[0]
        return count

    @property
    def device(self) -> torch.device:
        """The device on which the model takes token ids; offloaded weights are elsewhere until they run."""
        embeddings: Any = self.model.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        return torch.device(embeddings._hf_hook.execution_device) if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights, which its pixel values take too."""
        return self.model.dtype

    @property
    def image_token_id(self) -> int:
        """The placeholder id that occurs once for each image feature vector.

        Raises UnsupportedModelError for a model that keeps its image out of the token sequence.
        """
        config = self.model.config
        for name in _IMAGE_TOKEN_ATTRIBUTES:
            if isinstance(value := getattr(config, name, None), int):
                return value
        raise UnsupportedModelError(
            f"model: needs image tokens in its decoder (config.image_token_id), {type(config).__name__} has none"
        )

    def require_whole_parameters(self) -> None:
        """Raises UnsupportedModelError for a model sharded by FSDP2, which every process would have to run."""
        require_whole_parameters(self.model)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Evaluation mode in the model's own precision, for one thread at a time; others wait.

        Autocast is as the caller left it afterwards, so no generator may be suspended inside.
        """
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        autocast = torch.autocast("cpu" if device == "meta" else device, enabled=False)
        with self.lock, self.held_in_evaluation_mode(), autocast:
            # The caller of a generator may have put the model back into training mode between two samples.
            restore = self._evaluate() if self.model.training else _nothing
            try:
                yield
            finally:
                restore()

    @contextmanager
    def held_in_evaluation_mode(self) -> Iterator[None]:
        """Evaluation mode alone, which a generator may hold while it is suspended.

        The last of several holders restores every module as it was before the first. Compiled calls are off meanwhile:
        they would be traced again for one shape after another.
        """
        with self.lock:
            self._holders += 1
            if self._holders == 1:
                self._restore_mode = self._evaluate()
        try:
            yield
        finally:
            with self.lock:
                self._holders -= 1
                if not self._holders:
                    self._restore_mode()
                    self._restore_mode = _nothing  # it refers to modules, which own this object

    def _evaluate(self) -> Callable[[], None]:
        """Switch to evaluation mode. Returns what switches back."""
        model = self.model
        training = [module for module in model.modules() if module.training]
        compiled = {module: call for module in model.modules() if (call := module._compiled_call_impl) is not None}
        model.eval()
        for module in compiled:
            module._compiled_call_impl = None

        def restore() -> None:
            for module in training:
                module.training = True
            for module, call in compiled.items():
                module._compiled_call_impl = call

        return restore


def _nothing() -> None:
    pass
