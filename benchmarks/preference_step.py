"""One DPO step over image prompts, forward and backward: a prompt that runs once against a row for every response.

A LLaVA-1.6 shape with random weights, 2,928 image tokens in every prompt, B prompts with N responses of 80 tokens, the
first preferred to each of the others. "plain" is a right-padded batch of B·N rows with log-probabilities at the
responses alone; responses of one length make its rows free of padding and masks, its best case. "trl" is the loss of
TRL's DPOTrainer, where it is installed; it knows pairs only. Gradient checkpointing, which it would turn on by itself,
is off for all. "trl_step" is the same from the rows of a data set on, with images to be decoded and processed; "packed"
is that with `PackedDPOTrainer`, and "known" with the reference in columns of the data. "trl_known" is "trl_step" with
the same numbers put into its batch, which TRL itself refuses for images. "stored" is ours with the log-probabilities of
the reference known. Losses and gradients of all sides are asserted equal. On a GPU "sdpa" is ours without
FlexAttention, and the 7B shape with LoRA follows, if PEFT is there. Last come steps of `train` from photographs on
disk, against "waiting" for each of them (read_ahead.py).
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import llava
import numpy as np
import read_ahead
import torch
import torch.nn.functional as F
from llava import IMAGE_TOKENS, SEVEN_BILLION, Size
from measure import peak_memory, thread_counts, warm_median_of
from PIL import Image
from sampling import REFERENCE
from table import Options, Table
from torch import Tensor

from mmbdhs.logprobs import response_logps
from mmbdhs.losses import dpo_loss

PROMPT = "USER: <image>\nDescribe the image in detail. ASSISTANT:"
RESPONSE_TOKENS = 80
BETA = 0.1
REFERENCES = "ref_chosen_logps", "ref_rejected_logps"  # the columns of the reference in TRL
COLUMNS = {
    **{"shape": "<45", "prompts": ">1", "responses": ">1", "threads": ">1"},
    **{
        name: ">7.0f" for name in ("ours", "sdpa", "stored", "plain", "trl", "trl_step", "packed", "trl_known", "known")
    },
    **{name: ">5.2f" for name in ("over_plain", "over_trl", "stored_over_trl", "packed_over_trl", "known_over_trl")},
    "known_over_trl_known": ">5.2f",
    **{"waiting": ">7.0f", "over_waiting": ">5.2f"},
    **{"ours_mib": ">5.0f", "plain_mib": ">5.0f", "trl_mib": ">5.0f", "memory": ">4.2f"},
}

Loss = Callable[[], Tensor]


def main(options: Options) -> None:
    print("\nms for a step; …_mib: peak above what was held before; memory: ours as a share of plain")
    with Table("preference_step", COLUMNS, options) as table:
        for threads, size, prompts, responses in cases(options):
            torch.set_num_threads(threads)
            table.add(**measure(size, prompts, responses, options))
        for row in read_ahead.training_rows(options):
            table.add(**row)


def cases(options: Options) -> list[tuple[int, Size, int, int]]:
    """Threads, size, prompts, responses. Layers are left out where a step would take minutes: they are all alike."""
    *fewer, most = thread_counts(options.device)
    if options.quick:
        return [(1, Size(layers=2, hidden=128), 1, 2)]
    whole, part = Size(layers=8, hidden=512), Size(layers=2, hidden=512)
    found = [(most, whole, 1, 2), (most, whole, 1, 4), (most, part, 4, 2), (most, part, 4, 4)]
    if options.device.type == "cuda" and find_spec("peft"):
        found.append((most, SEVEN_BILLION, 1, 2))
    return found + [(threads, part, 1, responses) for threads in fewer for responses in (2, 4)]


def measure(size: Size, prompts: int, responses: int, options: Options) -> dict[str, Any]:
    """One row."""
    processor = llava.processor([REFERENCE, PROMPT] * 2)
    words = processor.tokenizer
    reference = llava.model(size, len(words), words.convert_tokens_to_ids("<image>"), options.device)
    reference.requires_grad_(False)
    shape = llava.name(reference)
    policy = adapted(reference) if size is SEVEN_BILLION else moved(reference)
    batch = Batch.draw(processor, prompts, responses)
    losses = {name: side(policy, reference, batch) for name, side in (("plain", plain), ("ours", ours))}
    losses["stored"] = stored(policy, reference, batch)
    if options.device.type == "cuda":
        losses["sdpa"] = by_sdpa(losses["ours"])
    if responses == 2 and find_spec("trl"):
        losses["trl"] = trl(policy, reference, batch)
        losses |= trl_steps(policy, reference, batch)
    sides = {name: Step(policy, loss) for name, loss in losses.items()}
    difference = largest_difference(sides)
    assert difference < (1e-4 if size.dtype == torch.float32 else 0.1), f"gradients differ by {difference:.1e}"
    seconds = warm_median_of(
        1 if options.quick else 3, *sides.values(), before=lambda: [side.clear() for side in sides.values()]
    )
    ms = {name: 1e3 * time for name, time in zip(sides, seconds, strict=True)}
    mib = {f"{name}_mib": side.peak_mib for name, side in sides.items()}
    ratios = {"over_plain": ms["plain"] / ms["ours"], "memory": mib["ours_mib"] / mib["plain_mib"]}
    if "trl" in ms:
        ratios |= {"over_trl": ms["trl"] / ms["ours"], "stored_over_trl": ms["trl"] / ms["stored"]}
        ratios |= {"packed_over_trl": ms["trl_step"] / ms["packed"], "known_over_trl": ms["trl_step"] / ms["known"]}
        ratios["known_over_trl_known"] = ms["trl_known"] / ms["known"]
    return {
        **{"shape": shape, "prompts": prompts, "responses": responses, **ms, **ratios, **mib},
        **{"image_tokens": IMAGE_TOKENS, "response_tokens": RESPONSE_TOKENS, "difference": difference},
    }


def moved(reference: Any) -> Any:
    """A policy that has left its reference, all of it to be trained: at the same place every loss is log 2."""
    policy = copy.deepcopy(reference).requires_grad_(True).train()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter)
    return policy


def adapted(reference: Any) -> Any:
    """The same as adapters of the text decoder's layers."""
    from peft import LoraConfig, get_peft_model

    layers = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    settings = LoraConfig(r=16, target_modules=layers, init_lora_weights=False)
    shared = {id(parameter): parameter for parameter in reference.parameters()}  # which deepcopy takes as copied
    return get_peft_model(copy.deepcopy(reference, shared), settings, autocast_adapter_dtype=False).train()


@dataclass(frozen=True)
class Batch:
    """B prompts with N responses: as text, and as token ids of the processor's making."""

    processor: Any
    images: list[Image.Image]
    texts: list[list[str]]
    prompts: list[Any]
    responses: list[list[list[int]]]

    @classmethod
    def draw(cls, processor: Any, prompts: int, responses: int) -> Batch:
        rng = np.random.default_rng(0)
        words = processor.tokenizer
        known = [word for word in sorted(set(REFERENCE.split())) if len(words(" " + word)["input_ids"]) == 1]
        drawn = rng.choice(known, (prompts, responses, RESPONSE_TOKENS))
        texts = [["".join(f" {word}" for word in words) for words in row] for row in drawn]
        images = [Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)) for _ in range(prompts)]
        encoded = [processor(text=[PROMPT], images=[image], return_tensors="pt") for image in images]
        return cls(processor, images, texts, encoded, [words(row)["input_ids"] for row in texts])

    def on(self, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """The prompts where a model wants them."""
        return [prompt.to(device, dtype) for prompt in self.prompts]


def preference(logps: Tensor, reference: Tensor) -> Tensor:
    """Mean loss of the first response against each of the others. logps, reference: [B, N]"""
    others = range(1, logps.shape[1])
    return torch.stack([dpo_loss(*pair(logps, i), *pair(reference, i), beta=BETA).losses for i in others]).mean()


def pair(logps: Tensor, other: int) -> tuple[Tensor, Tensor]:
    return logps[:, 0], logps[:, other]


def ours(policy: Any, reference: Any, batch: Batch) -> Loss:
    """The reference's log-probabilities as part of the step."""
    prompts = batch.on(reference.device, reference.dtype)

    def loss() -> Tensor:
        with torch.no_grad():
            known = response_logps(reference, prompts, batch.responses).sums
        return preference(response_logps(policy, prompts, batch.responses).sums, known)

    return loss


def by_sdpa(loss: Loss) -> Loss:
    def under_override() -> Tensor:
        with patch.dict(os.environ, MMBDHS_PACKED_ATTENTION="sdpa"):
            return loss()

    return under_override


def stored(policy: Any, reference: Any, batch: Batch) -> Loss:
    """Known before."""
    prompts = batch.on(reference.device, reference.dtype)
    with torch.no_grad():
        known = response_logps(reference, prompts, batch.responses).sums
    return lambda: preference(response_logps(policy, prompts, batch.responses).sums, known)


def plain(policy: Any, reference: Any, batch: Batch) -> Loss:
    """A row for each response, its image encoded with it. Rows of one length need no attention mask."""
    prompts, device = batch.on(reference.device, reference.dtype), reference.device
    count = len(batch.responses[0])
    images = {
        name: torch.cat([prompt[name] for prompt in prompts]).repeat_interleave(count, dim=0)
        for name in ("pixel_values", "image_sizes")
    }
    labels = torch.tensor(batch.responses, device=device)  # [B, N, R]
    before = torch.cat([prompt["input_ids"] for prompt in prompts]).repeat_interleave(count, dim=0)
    rows = torch.cat([before, labels.flatten(0, 1)], dim=1)

    def sums(model: Any) -> Tensor:
        kept = model(input_ids=rows, **images, use_cache=False, logits_to_keep=labels.shape[2] + 1).logits[:, :-1]
        return -F.cross_entropy(kept.flatten(0, 1).float(), labels.flatten(), reduction="none").view_as(labels).sum(2)

    def loss() -> Tensor:
        with torch.no_grad():
            known = sums(reference)
        return preference(sums(policy), known)

    return loss


def trl(policy: Any, reference: Any, batch: Batch) -> Loss:
    """What a DPOTrainer does with its batch, its metrics included. It gives both models a forward with a fused head."""
    from trl import DPOTrainer

    trainer = trainer_of(DPOTrainer, policy, reference, batch)
    inputs = _loaded(trainer, reference.dtype)
    return lambda: trainer._compute_loss(policy, inputs, return_outputs=False)


def trl_steps(policy: Any, reference: Any, batch: Batch) -> dict[str, Loss]:
    """The same from the rows of the data set on: TRL's own and packed, and both with the reference known."""
    from trl import DPOTrainer

    from mmbdhs.trl import PackedDPOTrainer

    # Packed ones last: a later DPOTrainer would replace the models' forward.
    sides = {"trl_step": DPOTrainer, "trl_known": DPOTrainer, "packed": PackedDPOTrainer}
    trainers = {name: trainer_of(kind, policy, reference, batch) for name, kind in sides.items()}
    one = trainers["packed"]
    known = dict(zip(REFERENCES, one.compute_ref_log_probs(reference, _loaded(one, reference.dtype)), strict=True))
    chosen, rejected = (values.tolist() for values in known.values())
    rows = [dict(zip(REFERENCES, pair, strict=True)) for pair in zip(chosen, rejected, strict=True)]
    trainers["known"] = trainer_of(PackedDPOTrainer, policy, reference, batch, rows)
    trainers["trl_known"].precompute_ref_logps = True
    more = {"trl_known": known}
    return {
        name: partial(_step, trainer, policy, reference.dtype, more.get(name, {})) for name, trainer in trainers.items()
    }


def _step(trainer: Any, policy: Any, dtype: torch.dtype, more: dict[str, Tensor]) -> Tensor:
    """more: tensors of the batch besides those of the collator."""
    return trainer._compute_loss(policy, _loaded(trainer, dtype) | more, return_outputs=False)


def _loaded(trainer: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The data set as a batch: images are decoded and processed."""
    inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    return {name: value.to(dtype) if name == "pixel_values" else value for name, value in inputs.items()}


def trainer_of(kind: type, policy: Any, reference: Any, batch: Batch, columns: Sequence[dict[str, float]] = ()) -> Any:
    """A trainer of TRL, whose data are the batch.

    columns: more of each row.
    """
    from datasets import Dataset
    from trl import DPOConfig

    rows = [
        {"images": [image], "prompt": PROMPT, "chosen": chosen, "rejected": rejected}
        for image, (chosen, rejected) in zip(batch.images, batch.texts, strict=True)
    ]
    if columns:
        rows = [row | more for row, more in zip(rows, columns, strict=True)]
    settings = DPOConfig(
        tempfile.gettempdir(),
        per_device_train_batch_size=len(rows),
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,  # no autocast around a model that has its dtype already
        use_cpu=reference.device.type == "cpu",
        report_to="none",
    )
    data = Dataset.from_list(rows)
    return kind(policy, reference, settings, train_dataset=data, processing_class=batch.processor)


class Step:
    """Forward and backward, from a policy without gradients."""

    def __init__(self, policy: Any, loss: Loss) -> None:
        self.clear, self._policy, self._loss = policy.zero_grad, policy, loss
        self.peak_mib = 0.0

    def __call__(self) -> Tensor:
        value = self._loss()
        value.backward()
        return value.detach()

    def first(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient, and what memory they took."""
        self.clear()
        values: list[Tensor] = []
        self.peak_mib = peak_memory(lambda: values.append(self()), self._policy.device)
        gradient = torch.cat([p.grad.flatten().float() for p in self._policy.parameters() if p.grad is not None])
        return values[0].float(), gradient


def largest_difference(sides: dict[str, Step]) -> float:
    """The largest relative difference of loss and gradient from those of "plain"."""
    value, gradient = sides["plain"].first()
    assert gradient.norm() > 0
    differences = []
    for name, side in sides.items():
        if name != "plain":
            other, its_gradient = side.first()
            differences += [(other - value).abs() / value, (its_gradient - gradient).norm() / gradient.norm()]
    return float(torch.stack(differences).max())
