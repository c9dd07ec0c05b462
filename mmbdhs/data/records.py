"""Preference pairs on disk, in the layout that TRL's vision preference training reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmbdhs.data.messages import Messages, Prompt, as_chat
from mmbdhs.data.pair_faults import pair_faults

# Columns of a sample that are there only where they say something.
_OPTIONAL = ("noise_steps", "noise_range", "image_tokens", "image_grids")


def preference_record(
    images: Sequence[str | os.PathLike[str] | dict[str, Any]], prompt: Prompt, chosen: str, sample: Any, seed: int
) -> dict[str, Any]:
    """Make one preference pair as a JSON-ready dict.

    TRL reads the columns images, prompt, chosen and rejected. The others say how the pair was made: key, seed,
    similarity, iterations, guided, image_tokens, visible_image_tokens, image_grids where the image tokens form plain
    grids, sentences, and for noisy images noise_steps and noise_range. `pair_faults` says what is wrong with a pair
    that teaches nothing.

    images: the prompt's images, written to the record unchanged: paths, or dicts as `datasets` stores images.
    prompt: a string, which becomes a user turn with the images first, a message list, or a ChatPrompt, of which tools
        and chat_template_kwargs become columns too.
    chosen: the chosen response.
    sample: a `BDHSSample`, which holds the rejected response.
    seed: the seed with which the sample was drawn.

    Raises ExampleError if a message list does not have one image placeholder for each image.
    """
    chat = as_chat(prompt, len(images), "prompt")
    columns = {"tools": chat.tools, "chat_template_kwargs": chat.chat_template_kwargs}
    columns |= {name: getattr(sample, name, None) for name in _OPTIONAL}
    columns["pair_faults"] = list(pair_faults((chosen, sample.rejected)))
    return {
        "images": [image if isinstance(image, dict) else os.fspath(image) for image in images],
        "prompt": chat.messages,
        "chosen": _response(chosen),
        "rejected": _response(sample.rejected),
        "key": sample.key,
        "seed": seed,
        "similarity": float(sample.similarity),
        "iterations": sample.iterations,
        "guided": sample.guided,
        "visible_image_tokens": list(sample.visible_image_tokens),
        "sentences": [asdict(sentence) for sentence in sample.sentences],
    } | {name: value for name, value in columns.items() if value}


def _response(text: str) -> Messages:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
