"""TRL's trainer with packed rows and, if asked, with responses that a source finds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import hash_module

from mmbdhs.training import PairSource, columns_of, gives_rewards
from mmbdhs.trl.collator import REFERENCE_COLUMNS, PackedCollator
from mmbdhs.trl.forward import Passes, add_packed_forward
from mmbdhs.trl.sourced import NOTHING, online_batch, source_example
from mmbdhs.vlm import VLM, Processor

_WEIGHT = "loss_weight"  # the name under which a batch carries the factor of its loss


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
        self._passes = Passes()
        for one in (self.model, self.ref_model):
            if one is not None:
                add_packed_forward(VLM.of(one).model, self._passes)
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
        examples = [[source_example(record, self._epochs.epoch) for record in batch] for batch in batches]
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
            online_batch(self._packed, useful or [(batch[0], NOTHING)]) | {_WEIGHT: share * len(useful)}
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
        more: tuple[str, ...] = REFERENCE_COLUMNS  # which TRL keeps of texts alone
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
        if gives_rewards(source):
            raise ValueError("source: needs one that gives pairs in TRL's loss of pairs, got one that gives rewards")
        data: Any = self.train_dataset
        columns = data.column_names  # None for some streams
        missing = [name for name in ("prompt", *columns_of(source)) if columns and name not in columns]
        if missing:
            raise ValueError(f"train_dataset: needs the columns {', '.join(missing)} for the source, got {columns}")


def _has_reference(data: Any) -> bool:
    return set(REFERENCE_COLUMNS) <= set(data.column_names or ())


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
