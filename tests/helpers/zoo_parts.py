"""What the builders of the model zoo share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from helpers.tiny_models import QWEN_TEMPLATE, tokenizer, vision_settings

SLIDING, FULL = "sliding_attention", "full_attention"


class MinimalProcessor:
    """For families whose own processor cannot serve: puts `expand(features, i)` in the place of the i-th `marker`.

    features: the image processor's output, which goes to the model, less its `private` entries.
    images: those of the one text, in a list of their own or not.
    finish: adds to the finished inputs what else the model takes.
    """

    def __init__(
        self,
        image_processor: Any,
        words: transformers.PreTrainedTokenizerFast,
        chat_template: str,
        marker: str,
        expand: Callable[[Any, int], str],
        finish: Callable[[dict[str, Any]], None] = lambda inputs: None,
        private: tuple[str, ...] = (),
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = words
        self.chat_template = chat_template
        self._marker, self._expand, self._finish, self._private = marker, expand, finish, private

    def __call__(
        self, text: list[str], images: list[Any], return_tensors: str = "pt", padding: bool = True
    ) -> dict[str, Any]:
        flat = [image for some in images for image in (some if isinstance(some, list) else [some])]
        features = dict(self.image_processor(flat, return_tensors=return_tensors))
        pieces = text[0].split(self._marker)
        whole = pieces[0] + "".join(self._expand(features, i) + piece for i, piece in enumerate(pieces[1:]))
        inputs = dict(self.tokenizer([whole], return_tensors=return_tensors, return_token_type_ids=False))
        inputs.update({name: value for name, value in features.items() if name not in self._private})
        self._finish(inputs)
        return inputs

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> Any:
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        if not tokenize:
            return text
        parts = [part for message in messages for part in message["content"]]
        return self([text], [part["image"] for part in parts if part["type"] == "image"], return_tensors)


def chatml(image: str) -> str:
    """A chat template that writes `image` for each image."""
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def chatml_tokenizer(*special: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    """With <pad>, the tokens of `chatml`, the `special` ones and those that it keeps as attributes under a name."""
    words = tokenizer(("<pad>", "<|im_start|>", "<|im_end|>", *special, *named.values()), "<|im_end|>")
    for name, token in named.items():
        setattr(words, name, token)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(token))
    return words


def siglip_settings(size: int) -> dict[str, Any]:
    return {**vision_settings(size), "model_type": "siglip_vision_model", "vision_use_head": False}


def square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def plain_vision(size: int) -> dict[str, Any]:
    """For families whose vision configuration is their own."""
    settings = vision_settings(size)
    return {name: value for name, value in settings.items() if name not in ("model_type", "projection_dim")}
