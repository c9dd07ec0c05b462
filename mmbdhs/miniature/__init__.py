"""The miniature: a small world with known truth, and a real vision-language model trained on it, shipped with the
package. `world` draws scenes, `language` speaks of them, `train` is how the weights were made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def path() -> Path:
    """The folder with the shipped model and processor, which transformers' Auto classes load as it is."""
    return Path(__file__).parent / "model"


def load() -> tuple[PreTrainedModel, Any]:
    """The shipped model, float32, in evaluation mode, on the CPU, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path(), dtype="float32")
    return model.eval(), AutoProcessor.from_pretrained(path())
