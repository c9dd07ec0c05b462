"""Batches of preference pairs: TRL's rows, and each prompt once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.data_utils import apply_chat_template, is_conversational, prepare_multimodal_messages

from mmbdhs.trl.forward import PACKED_PROMPTS

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


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
            for name in REFERENCE_COLUMNS
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
            PACKED_PROMPTS: list(prompts),
        }

    def _encoded(self, example: Mapping[str, Any], rejected: Sequence[Any]) -> tuple[dict[str, Any], list[Tensor]]:
        """The processed prompt, and the ids of all responses, tokenised as TRL does."""
        rendered = [self._rendered({**example, "rejected": response}) for response in rejected]
        images = images_of(example)
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
        messages["prompt"] = prepare_multimodal_messages(texts["prompt"], images=images_of(example))
        return apply_chat_template(messages | given, self.processor)

    def _ids(self, text: str, room: int | None) -> Tensor:
        ids = self.processor(text=[text], return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids[0, :room]


def images_of(example: Mapping[str, Any]) -> list[Any]:
    """The images of a record of either layout of TRL."""
    return example["images"] if "images" in example else [example["image"]]
