"""Pairs that teach nothing are counted by reason, and left out where the settings say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records
from torch import Tensor

from mmbdhs.data import pair_faults, preference_record
from mmbdhs.losses import dpo_loss
from mmbdhs.sampling import BDHSSample
from mmbdhs.training import StoredSource, pairwise, train

accelerate = pytest.importorskip("accelerate")

DPO = pairwise(dpo_loss, beta=0.1)


@pytest.mark.parametrize(
    ("responses", "faults"),
    [
        (("Yes.", "No."), ()),
        (("A red car.", "A red car."), ("identical",)),
        (("A red car.", " A  red car.\n"), ("identical",)),
        (("caf\u00e9", "cafe\u0301"), ("identical",)),
        (("A red car.", "A red car"), ()),
        (("A red car.", "a red car."), ()),
        (("A", "A", "B"), ()),
        (("A", "A", "A"), ("identical",)),
        (("A car.",), ()),
        (("A car.", "A c\ufffd."), ("garbled",)),
        (("A car.", "the the The the the dog"), ("garbled",)),
        (("A car.", "the the the the dog"), ()),
        (("A car.", "!? .. ,, -- a"), ("garbled",)),
        (("A car.", "C++"), ("garbled",)),  # two signs and one letter
        (("A car.", "42"), ()),
        (("\u732b\u3002", "\u72ac\u3002"), ()),
        (([{"role": "assistant", "content": "A car."}], "A car."), ("identical",)),
        (("\ufffd", "\ufffd"), ("identical", "garbled")),
    ],
)
def test_faults(responses: Any, faults: tuple[str, ...]) -> None:
    assert pair_faults(responses) == faults


def test_a_record_keeps_the_faults_of_its_pair() -> None:
    sample = BDHSSample("k", " A car. ", 1.0, 5, False, ())
    record = preference_record(["car.png"], "What?", "A car.", sample, seed=0)
    assert record["pair_faults"] == ["identical"]
    other = preference_record(["car.png"], "What?", "A dog.", sample, seed=0)
    assert "pair_faults" not in other


def logged(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


def weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_identical_pairs_are_left_out_and_garbled_ones_on_request(tmp_path: Path) -> None:
    """A run of the other records takes the same step."""
    good = scene_records(4)
    alike = [record | {"rejected": record["chosen"] + " ", "key": "alike"} for record in scene_records(1)]
    garbled = [record | {"rejected": "red red red red red", "key": "garbled"} for record in scene_records(1)]
    models = []
    for name, records, drops in (
        ("good", good, {}),
        ("all", [*good, *alike, *garbled], {"drop_garbled": True}),
        ("garbled", [*good, *garbled, *alike], {}),
        ("kept", [*good, *alike], {"drop_identical": False}),
    ):
        model, processor = fresh_miniature()
        config = full_run(tmp_path / name, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1, **drops)
        train(model, processor, records, StoredSource(), DPO, config)
        models.append(weights(model))
    found = [(logged(tmp_path / name)["identical"], logged(tmp_path / name)["garbled"]) for name in ("all", "garbled")]
    assert found == [(1, 1), (1, 1)] and logged(tmp_path / "good")["identical"] == 0
    start = weights(fresh_miniature()[0])
    assert apart(models[1], models[0], start) < 1e-3 and apart(models[2], models[0], start) > 1e-1
    losses = [logged(tmp_path / name)["loss"] for name in ("good", "kept")]
    assert losses == pytest.approx([math.log(2)] * 2)  # before the first step every pair has the margin 0
