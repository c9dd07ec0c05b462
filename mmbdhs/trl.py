"""TRL's DPOTrainer with the image prompt run once for both responses of a pair.

    from mmbdhs.trl import PackedDPOTrainer  # in place of: from trl import DPOTrainer

`PackedDPOTrainer` changes how log-probabilities are computed and nothing else: the losses, the metrics, the loop and
every setting are TRL's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmbdhs.logprobs import scored_tokens
from mmbdhs.vlm import VLM

try:
    from trl.data_utils import apply_chat_template, is_conversational, prepare_multimodal_messages
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError as error:
    raise ImportError("mmbdhs.trl needs the extra 'trl': pip install 'mmbdhs[trl]'") from error

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
_PROMPTS = "packed_prompts"  # the name under which a batch carries the processed prompts to the model


class PackedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` for vision-language models, which runs each image prompt once for both responses of a pair.

    Arguments, losses, metrics, callbacks, PEFT adapters and checkpoints are TRL's. The reference is what TRL makes it:
    the policy with its adapters off, or a second model. Where all data has the columns ref_chosen_logps and
    ref_rejected_logps, no reference runs. Losses and gradients are those of `DPOTrainer` but for rounding.

    Raises TypeError for a tokenizer in place of a processor, and ValueError for what needs other rows: FSDP, DeepSpeed
    ZeRO-3, `aux_loss` of experts, a `data_collator`, and data without images.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("data_collator") is not None:
            raise ValueError("data_collator: needs None, because the trainer collates packed rows itself")
        super().__init__(*args, **kwargs)
        self._check_supported()
        for model in (self.model, self.ref_model):
            if model is not None:
                _add_packed_forward(VLM.of(model).model)
        if all(map(_has_reference, self._data_sets())):
            self.precompute_ref_logps, self.ref_model = True, None
        settings: Any = self.args
        self.data_collator = PackedCollator(self.processing_class, settings.max_length, self.precompute_ref_logps)

    def _data_sets(self) -> list[Any]:
        held_out = self.eval_dataset
        others = list(held_out.values()) if isinstance(held_out, Mapping) else [held_out]
        return [self.train_dataset, *(data for data in others if data is not None)]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.precompute_ref_logps:  # TRL keeps these columns of texts alone
            known: Any = self._signature_columns
            self._signature_columns = known + [name for name in _REFERENCE if name not in known]

    def _check_supported(self) -> None:
        if not self._is_vlm:
            raise TypeError(f"processing_class: needs a processor, got {type(self.processing_class).__name__}")
        if not self._is_vision_dataset:
            raise ValueError("train_dataset: needs a column images or image. Use TRL's DPOTrainer for text alone")
        if self.is_fsdp_enabled:
            raise ValueError("FSDP: shards parameters that a packed row needs whole. Use DDP, or TRL's DPOTrainer")
        plugin = self.args.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO-3: shards parameters that a packed row needs whole. Use ZeRO-1 or ZeRO-2")
        if self.aux_loss_enabled:
            raise ValueError("router_aux_loss_coef: needs 0, because packed rows have no router logits")


@dataclass
class PackedCollator:
    """Makes a batch of preference pairs: TRL's padded ids and masks, chosen responses before rejected ones, and the
    processed prompts, each once.

    processor: the model's processor.
    max_length: the most tokens of prompt and response; longer responses are cut. None for no limit.
    with_reference: whether batches have the columns ref_chosen_logps and ref_rejected_logps.
    """

    processor: Any
    max_length: int | None = None
    with_reference: bool = False

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts, pairs = zip(*map(self._encoded, examples), strict=True)
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts] * 2
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        rows = [torch.cat([prompt["input_ids"][0], text]) for prompt, text in zip(prompts * 2, texts, strict=True)]
        counts = [torch.arange(len(row)) >= length for row, length in zip(rows, lengths, strict=True)]
        tokenizer = self.processor.tokenizer
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=padding),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "completion_mask": pad_sequence(counts, batch_first=True).long(),
            _PROMPTS: list(prompts),
        } | {
            name: torch.tensor([float(example[name]) for example in examples])
            for name in _REFERENCE
            if self.with_reference
        }

    def _encoded(self, example: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
        """The processed prompt, and the ids of both responses, tokenised as TRL does."""
        images = example["images"] if "images" in example else [example["image"]]
        texts = {name: example[name] for name in ("prompt", "chosen", "rejected")}
        if is_conversational(texts):
            given = {name: example[name] for name in ("tools", "chat_template_kwargs") if example.get(name)}
            messages = {name: prepare_multimodal_messages(texts[name]) for name in ("chosen", "rejected")}
            messages["prompt"] = prepare_multimodal_messages(texts["prompt"], images=images)
            texts = apply_chat_template(messages | given, self.processor)
        prompt = dict(
            self.processor(images=[images], text=[texts["prompt"]], return_tensors="pt", add_special_tokens=False)
        )
        room = None if self.max_length is None else self.max_length - prompt["input_ids"].shape[1]
        if room is not None and room <= 0:
            raise ValueError(
                f"max_length: needs more than the {prompt['input_ids'].shape[1]} tokens of an image prompt, got "
                f"{self.max_length}. Set max_length=None in DPOConfig"
            )
        return prompt, (self._ids(texts["chosen"], room), self._ids(texts["rejected"], room))

    def _ids(self, text: str, room: int | None) -> Tensor:
        ids = self.processor(text=[text], return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids[0, :room]


def _has_reference(data: Any) -> bool:
    return set(_REFERENCE) <= set(data.column_names or ())


def _add_packed_forward(model: nn.Module) -> None:
    """Let the model compute packed rows where a batch brings its prompts. The policy's wrappers see one forward, as
    they do with TRL."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        prompts = kwargs.pop(_PROMPTS, None)
        return original(*args, **kwargs) if prompts is None else _packed_output(self, prompts, kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _packed_output(model: nn.Module, prompts: Sequence[Mapping[str, Any]], labels: Tensor) -> FusedCausalLMOutput:
    """What TRL's forward returns for the padded rows.

    labels: int64 [2B, L], the tokens of chosen and then of rejected responses; -100 elsewhere.
    """
    vlm = VLM.of(model)
    mask, count = labels != -100, len(prompts)
    texts = [row[own] for row, own in zip(labels, mask, strict=True)]
    pairs = [[texts[number], texts[count + number]] for number in range(count)]
    inputs = [{name: _cast(vlm, value) for name, value in prompt.items()} for prompt in prompts]
    found, statistics = scored_tokens(model, inputs, pairs)
    lengths = [len(text) for pair in pairs for text in pair]

    def placed(values: Sequence[Tensor]) -> Tensor:
        """The values of the tokens of every pair in the places of the padded rows."""
        flat = torch.cat([pair[side] for side in (0, 1) for pair in zip(values[::2], values[1::2], strict=True)])
        return flat.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], flat)

    log_probs = placed([logps for pair in found for logps in pair])
    others = {name: placed(values.split(lengths)) for name, values in statistics._asdict().items()}
    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return FusedCausalLMOutput(loss=loss, log_probs=log_probs, label_mask=mask[:, 1:], **others)


def _cast(vlm: VLM, value: Any) -> Any:
    is_pixels = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(vlm.dtype) if is_pixels else value
