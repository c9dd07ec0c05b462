"""Batches of responses that a source finds during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trl.data_utils import prepare_multimodal_messages

from mmbdhs.data import ChatPrompt, Messages, as_key, content_key, is_null, load_images
from mmbdhs.errors import ExampleError
from mmbdhs.training import Candidates, TrainingExample
from mmbdhs.trl.collator import PackedCollator, images_of

NOTHING = Candidates((".", "."))  # what stands in for an example for which a source finds nothing


def online_batch(collator: PackedCollator, pairs: Sequence[tuple[TrainingExample, Any]]) -> dict[str, Any]:
    """A batch of what a source found for the examples."""
    examples, rejected = zip(*(_candidate_row(example, found) for example, found in pairs), strict=True)
    if len(set(map(len, rejected))) > 1:
        counts = [1 + len(responses) for responses in rejected]
        raise ValueError(f"source: needs equally many responses for each example of a batch, got {counts}")
    return collator.collated(examples, rejected)


def source_example(record: Mapping[str, Any], epoch: int) -> TrainingExample:
    """The record as a source takes it."""
    images, prompt = images_of(record), record["prompt"]
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
