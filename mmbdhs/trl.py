"""TRL's DPOTrainer with the image prompt run once for both responses of a pair.

    from mmbdhs.trl import PackedDPOTrainer  # in place of: from trl import DPOTrainer

`PackedDPOTrainer` changes how log-probabilities are computed and, if asked, where responses come from. The losses, the
metrics, the loop and every setting are TRL's.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from mmbdhs.data import ChatPrompt, Messages, as_key, content_key, is_null, load_images
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs import scored_tokens
from mmbdhs.training import Candidates, PairSource, TrainingExample, columns_of
from mmbdhs.vlm import VLM, Processor

try:
    from trl.data_utils import apply_chat_template, is_conversational, prepare_multimodal_messages
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput, hash_module
except ImportError as error:
    raise ImportError("mmbdhs.trl needs the extra 'trl': pip install 'mmbdhs[trl]'") from error

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
_WEIGHT = "loss_weight"  # the name under which a batch carries the factor of its loss
_NOTHING = Candidates((".", "."))
_PROMPTS = "packed_prompts"  # the name under which a batch carries the processed prompts to the model


class PackedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` for vision-language models, which runs each image prompt once for both responses of a pair.

    Arguments, losses, metrics, callbacks, PEFT adapters and checkpoints are TRL's. The reference is what TRL makes it:
    the policy with its adapters off, or a second model. Where all data has the columns ref_chosen_logps and
    ref_rejected_logps, no reference runs; `precompute_ref_log_probs` of DPOConfig computes these columns first. Losses
    and gradients are those of `DPOTrainer` but for rounding.

    source: finds the responses of each training batch, such as `mmbdhs.training.OnlineBDHSSource`, which samples
        rejected ones from the current policy (Online-BDHS), and with with_stored=True compares with the stored ones too
        (Eq. 5). None for the columns chosen and rejected. Held-out data are stored pairs in any case.

    A source draws by the column "key" and the epoch, or by the content of rows without a key, so that a resumed run
    draws the same. It runs in the main process, once for all micro-batches of an optimiser step. Examples for which it
    finds nothing are left out of the mean loss, and their share is logged as "undecided".

    Raises TypeError for a tokenizer in place of a processor, and ValueError for what needs other rows: FSDP, DeepSpeed
    ZeRO-3, `aux_loss` of experts, a `data_collator`, and data without images. With a source also for prompts that are
    not messages, missing columns, and `precompute_ref_log_probs`.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: None = None,
        *more: Any,
        source: PairSource | None = None,
        **kwargs: Any,
    ) -> None:
        if data_collator is not None:
            raise ValueError("data_collator: needs None, because the trainer collates packed rows itself")
        precompute = args is not None and args.precompute_ref_log_probs
        if precompute and source is not None:
            raise ValueError("precompute_ref_log_probs: needs False where a source finds the responses, got True")
        if precompute:  # TRL refuses it for images, because its rows would run every image twice
            args = copy.copy(args)
            args.precompute_ref_log_probs = False
        super().__init__(model, ref_model, args, None, *more, **kwargs)
        self._source, self._epochs = source, _EpochCounter()
        self._check_supported()
        self._passes = _Passes()
        for one in (self.model, self.ref_model):
            if one is not None:
                _add_packed_forward(VLM.of(one).model, self._passes)
        settings: Any = self.args
        self.data_collator = self._packed = PackedCollator(self.processing_class, settings.max_length)
        if source is not None:
            self._check_source(source)
            self.add_callback(self._epochs)
        elif precompute:
            self._add_reference_columns()
        if source is None and all(map(_has_reference, self._data_sets())):
            self.precompute_ref_logps, self.ref_model = True, None
            self._packed.with_reference = True

    def _add_reference_columns(self) -> None:
        self._precompute_model_hash = hash_module(cast("nn.Module", self.ref_model or self.model))
        args: Any = self.args
        held_out = self.eval_dataset
        size = args.precompute_ref_batch_size or args.per_device_train_batch_size
        self.train_dataset = self._precompute_ref_logps(self.train_dataset, "train", size)
        size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        if isinstance(held_out, Mapping):
            self.eval_dataset = {name: self._precompute_ref_logps(one, name, size) for name, one in held_out.items()}
        elif held_out is not None:
            self.eval_dataset = self._precompute_ref_logps(held_out, "eval", size)

    def get_train_dataloader(self) -> Any:
        """Batches for training; with a source they are lists of records, because workers cannot run the policy."""
        if self._source is None:
            return super().get_train_dataloader()
        collator: Any = list
        self.data_collator = collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = self._packed

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimiser step, with the responses that the source finds."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return (batches if self._source is None else self._with_responses(self._source, batches)), count

    def _with_responses(self, source: PairSource, batches: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        model, processor = self.accelerator.unwrap_model(self.model), cast("Processor", self.processing_class)
        examples = [[_example(record, self._epochs.epoch) for record in batch] for batch in batches]
        asked = [example for batch in examples for example in batch]
        with torch.no_grad(), VLM.of(model).evaluation_mode():
            found = source(model, processor, asked) if asked else []
        answers = iter(zip(asked, found, strict=True))
        decided = [[pair for pair in islice(answers, len(batch)) if pair[1] is not None] for batch in examples]
        counts = torch.tensor([[len(asked), sum(map(len, decided))]], device=self.accelerator.device)
        total, usable = self.accelerator.gather(counts).sum(dim=0).tolist()
        if total:
            self._metrics["train"]["undecided"].append(1 - usable / total)
        # All examples of an optimiser step weigh the same in the mean over micro-batches and processes.
        share = len(batches) * self.accelerator.num_processes / max(usable, 1)
        # An example that does not count stands in for none, because each process takes part in each step.
        return [
            _online_batch(self._packed, useful or [(batch[0], _NOTHING)]) | {_WEIGHT: share * len(useful)}
            for batch, useful in zip(examples, decided, strict=True)
        ]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, times the weight of the micro-batch where a source leaves out examples."""
        weight, before = inputs.pop(_WEIGHT, None), self._passes.count
        with nullcontext() if weight is None else _gathering_unlike_lengths(self.accelerator):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self._passes.count == before:  # TRL's own forward would run without the images
            raise RuntimeError("model: another trainer of TRL took its forward. Build PackedDPOTrainer after it")
        return loss if weight is None else weight * loss

    def _data_sets(self) -> list[Any]:
        held_out = self.eval_dataset
        others = list(held_out.values()) if isinstance(held_out, Mapping) else [held_out]
        return [self.train_dataset, *(data for data in others if data is not None)]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        more: tuple[str, ...] = _REFERENCE  # which TRL keeps of texts alone
        if self._source is not None:
            more = ("key", *columns_of(self._source))
        self._signature_columns = known + [name for name in more if name not in known]

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

    def _check_source(self, source: PairSource) -> None:
        data: Any = self.train_dataset
        columns = data.column_names  # None for some streams
        missing = [name for name in ("prompt", *columns_of(source)) if columns and name not in columns]
        if missing:
            raise ValueError(f"train_dataset: needs the columns {', '.join(missing)} for the source, got {columns}")


@contextmanager
def _gathering_unlike_lengths(accelerator: Any) -> Iterator[None]:
    """For the length of the context, processes may gather vectors of unlike lengths, as TRL does with the rewards of a
    batch: a source may find nothing for some examples of one process."""
    plain = accelerator.gather

    def gather(values: Tensor) -> Tensor:
        if accelerator.num_processes == 1 or values.ndim == 0:
            return plain(values)
        lengths = plain(torch.tensor([len(values)], device=values.device)).tolist()
        rows = plain(accelerator.pad_across_processes(values)).view(len(lengths), -1)
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


class _EpochCounter(TrainerCallback):
    """Which epoch runs, 0 for the first. `TrainerState.epoch` says it for data of known length alone."""

    epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0) - 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch += 1


def _online_batch(collator: PackedCollator, pairs: Sequence[tuple[TrainingExample, Any]]) -> dict[str, Any]:
    """A batch of what a source found for the examples."""
    examples, rejected = zip(*(_candidate_row(example, found) for example, found in pairs), strict=True)
    if len(set(map(len, rejected))) > 1:
        counts = [1 + len(responses) for responses in rejected]
        raise ValueError(f"source: needs equally many responses for each example of a batch, got {counts}")
    return collator.collated(examples, rejected)


def _example(record: Mapping[str, Any], epoch: int) -> TrainingExample:
    """The record as a source takes it."""
    images, prompt = _images(record), record["prompt"]
    if isinstance(prompt, str):
        raise ValueError(f"prompt: needs a list of messages where a source finds the responses, got {prompt!r}")
    messages = [_without_images(message) for message in prepare_multimodal_messages(prompt, images=images)]
    whole = {**record, "images": images, "prompt": messages}
    key = record.get("key")
    if is_null(key):
        key = content_key(ChatPrompt.of_record(whole), repr(record.get("chosen")), load_images(images))
    return TrainingExample(whole, as_key(key), epoch)


def _without_images(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with placeholders for the images that TRL puts into its parts."""
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message.get("content") or ()]
    return {**message, "content": parts}


def _candidate_row(example: TrainingExample, found: Any) -> tuple[dict[str, Any], list[Messages]]:
    """The record with the chosen response as messages, and the other responses."""
    if isinstance(found, ExampleError):
        raise ExampleError(f"train_dataset: example {example.key!r}: {found}") from found
    if found.distorted is not None or len(found.responses) < 2:
        raise ValueError("source: needs two responses or more, and no distorted images, in TRL's loss")
    chosen, *rejected = map(_as_messages, found.responses)
    return {**example.record, "chosen": chosen}, rejected


def _as_messages(response: str | Messages) -> Messages:
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


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
        return self.collated(examples, [[example["rejected"]] for example in examples]) | {
            name: torch.tensor([float(example[name]) for example in examples])
            for name in _REFERENCE
            if self.with_reference
        }

    def collated(self, examples: Sequence[Mapping[str, Any]], rejected: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """A batch of the pairs of each example's chosen response and each of its rejected ones.

        examples: B records.
        rejected: for each example its rejected responses, N each.

        The first B pairs compare with the first rejected response of each example, the next B with the second.
        """
        prompts, texts = zip(*map(self._encoded, examples, rejected), strict=True)
        others = [responses[column] for column in range(1, len(texts[0])) for responses in texts]
        pairs = len(others) // len(prompts)
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts] * 2 * pairs
        responses = [chosen for chosen, *_ in texts] * pairs + others
        rows = [
            torch.cat([prompt["input_ids"][0], text])
            for prompt, text in zip(prompts * 2 * pairs, responses, strict=True)
        ]
        counts = [torch.arange(len(row)) >= length for row, length in zip(rows, lengths, strict=True)]
        tokenizer = self.processor.tokenizer
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=padding),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "completion_mask": pad_sequence(counts, batch_first=True).long(),
            _PROMPTS: list(prompts),
        }

    def _encoded(self, example: Mapping[str, Any], rejected: Sequence[Any]) -> tuple[dict[str, Any], list[Tensor]]:
        """The processed prompt, and the ids of all responses, tokenised as TRL does."""
        rendered = [self._rendered({**example, "rejected": response}) for response in rejected]
        images = _images(example)
        prompt = dict(
            self.processor(images=[images], text=[rendered[0]["prompt"]], return_tensors="pt", add_special_tokens=False)
        )
        room = None if self.max_length is None else self.max_length - prompt["input_ids"].shape[1]
        if room is not None and room <= 0:
            raise ValueError(
                f"max_length: needs more than the {prompt['input_ids'].shape[1]} tokens of an image prompt, got "
                f"{self.max_length}. Set max_length=None in DPOConfig"
            )
        responses = [rendered[0]["chosen"], *(texts["rejected"] for texts in rendered)]
        return prompt, [self._ids(response, room) for response in responses]

    def _rendered(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Prompt, chosen and rejected response as text."""
        texts = {name: example[name] for name in ("prompt", "chosen", "rejected")}
        if not is_conversational(texts):
            return texts
        given = {name: example[name] for name in ("tools", "chat_template_kwargs") if example.get(name)}
        messages = {name: prepare_multimodal_messages(texts[name]) for name in ("chosen", "rejected")}
        messages["prompt"] = prepare_multimodal_messages(texts["prompt"], images=_images(example))
        return apply_chat_template(messages | given, self.processor)

    def _ids(self, text: str, room: int | None) -> Tensor:
        ids = self.processor(text=[text], return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids[0, :room]


def _images(example: Mapping[str, Any]) -> list[Any]:
    return example["images"] if "images" in example else [example["image"]]


def _has_reference(data: Any) -> bool:
    return set(_REFERENCE) <= set(data.column_names or ())


@dataclass
class _Passes:
    """How many packed forward passes the models have made."""

    count: int = 0


def _add_packed_forward(model: nn.Module, passes: _Passes) -> None:
    """Let the model compute packed rows where a batch brings its prompts. The policy's wrappers see one forward, as
    they do with TRL."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        prompts = kwargs.pop(_PROMPTS, None)
        if prompts is None:
            return original(*args, **kwargs)
        passes.count += 1
        return _packed_output(self, prompts, kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _packed_output(model: nn.Module, prompts: Sequence[Mapping[str, Any]], labels: Tensor) -> FusedCausalLMOutput:
    """What TRL's forward returns for the padded rows.

    prompts: B of them.
    labels: int64 [2P, L], the tokens of the chosen and then of the rejected responses of P pairs; -100 elsewhere. P is
        a multiple of B, and pairs with the same remainder by B belong to one prompt and one chosen response.
    """
    vlm = VLM.of(model)
    mask, count = labels != -100, len(prompts)
    texts = [row[own] for row, own in zip(labels, mask, strict=True)]
    others = texts[len(texts) // 2 :]
    groups = [[texts[number], *others[number::count]] for number in range(count)]
    inputs = [{name: _cast(vlm, value) for name, value in prompt.items()} for prompt in prompts]
    found, statistics = scored_tokens(model, inputs, groups)
    lengths = [len(text) for group in groups for text in group]
    size = len(groups[0])

    def placed(values: Sequence[Tensor]) -> Tensor:
        """The values of the tokens of every response in the places of the padded rows."""
        columns = [list(values[column::size]) for column in range(size)]
        flat = torch.cat([*(columns[0] * (size - 1)), *(one for column in columns[1:] for one in column)])
        return flat.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], flat)

    log_probs = placed([logps for group in found for logps in group])
    more = {name: placed(values.split(lengths)) for name, values in statistics._asdict().items()}
    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return FusedCausalLMOutput(loss=loss, log_probs=log_probs, label_mask=mask[:, 1:], **more)


def _cast(vlm: VLM, value: Any) -> Any:
    is_pixels = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(vlm.dtype) if is_pixels else value
