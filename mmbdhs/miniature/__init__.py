"""The miniature: a small world with known truth, and a real vision-language model trained on it.

It is shipped with the package, so that everything runs where nothing can be downloaded. It shows mechanism and
implementation; it is no evidence about large models.

Read in this order: `kinds` (which objects, colours and scenes there are, and what is typical), `world` (draws scenes),
`language` (speaks of them, truly or with the bias of synthetic captions), `demo` (samples pairs about them),
`benchmarks` (writes them as the files of POPE and CHAIR).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load", "path"]


def path() -> Path:
    """The folder with the shipped model and processor, which transformers' Auto classes load."""
    return Path(__file__).parent / "model"


def load(folder: Path | None = None) -> tuple[PreTrainedModel, Any]:
    """The model and its processor, in float32 and evaluation mode, on the CPU.

    folder: where they are; None for the shipped ones.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = folder or path()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return model.eval(), AutoProcessor.from_pretrained(folder)
