"""Data, models and settings of runs in TRL."""

from __future__ import annotations

import copy
from typing import Any

import datasets
from helpers import tiny_models
from helpers.plain import picture
from helpers.preference_records import fresh_miniature, scene_records

PLAIN = {"max_length": None, "bf16": False, "use_cpu": True, "save_strategy": "no", "report_to": "none"}
PLAIN |= {"logging_steps": 1, "disable_dropout": True, "learning_rate": 1e-3}


def pairs(family: str) -> Any:
    """A data set of 8 pairs whose responses and images differ in length and size."""
    if family == "miniature":
        names = "images", "prompt", "chosen", "rejected", "key"
        records = [{name: one[name] for name in names} for one in scene_records(8)]
    else:
        texts = ["A red car.", "A dog sits on the table, e.g. a van.", "No, it is 3.5 dollars!", "Green."]
        sizes = (64, 64), (90, 33), (33, 90), (112, 70)
        records = [
            {"images": [picture(n, *sizes[n % 4])], "prompt": "Describe it.", "chosen": texts[n % 4]}
            | {"rejected": texts[(n + 1) % 4]}
            for n in range(8)
        ]
    for record in records:
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            record[name] = [{"role": role, "content": record[name]}]
    return datasets.Dataset.from_list(records)


def loaded(family: str) -> tuple[Any, Any]:
    """A model of the family that a test may change, and its processor."""
    model, processor = fresh_miniature() if family == "miniature" else getattr(tiny_models, family)()
    return copy.deepcopy(model), copy.deepcopy(processor)
