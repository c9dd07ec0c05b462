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


def load(folder: Path | None = None) -> tuple[PreTrainedModel, Any]:
    """The shipped model, or the one in `folder`, float32, in evaluation mode, on the CPU, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = folder or path()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return model.eval(), AutoProcessor.from_pretrained(folder)
