"""Reward models: the objective against rows of their own, what is saved and loaded, and accuracy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records
from safetensors.torch import load_file
from torch import Tensor

from mmbdhs.data.jsonl import read_jsonl
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs.preferences import encode_record
from mmbdhs.training.heads import REWARD_HEAD, add_head
from mmbdhs.training.pair_sources import Candidates, DistortedSource, StoredSource, SupervisedSource, TrainingExample
from mmbdhs.training.reward_model import RewardModel, reward_accuracy, reward_modelling
from mmbdhs.training.trainer import train

pytest.importorskip("accelerate")
pytest.importorskip("peft")

STEADY = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1}


def plain_scores(model: Any, processor: Any, record: dict[str, Any]) -> list[Tensor]:
    """The head on the last token of both responses, each in a row of its own."""
    inputs, texts = encode_record(model, processor, record)
    scores = []
    for ids in texts:
        row = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        hidden = model(**row, use_cache=False, output_hidden_states=True).hidden_states[-1]
        scores.append((hidden[0, -1] * model.reward_head.weight[0]).sum())
    return scores


@pytest.mark.parametrize("margin", [False, True])
def test_training_takes_the_steps_of_rows_of_their_own(margin: bool, tmp_path: Path) -> None:
    (model, processor), (plain, _) = fresh_miniature(), fresh_miniature()
    records = scene_records(4)
    margins = [0.5, -0.25, 0.0, 2.0] if margin else [0.0] * 4
    if margin:
        records = [record | {"margin": one} for record, one in zip(records, margins, strict=True)]
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    config = full_run(
        tmp_path, num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, **STEADY
    )
    train(model, processor, records, StoredSource(), reward_modelling(centering=0.1), config)

    plain.model.vision_tower.requires_grad_(False)
    add_head(plain, REWARD_HEAD, seed=0)
    start["reward_head.weight"] = plain.reward_head.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    norms = []
    for _ in range(3):
        optimizer.zero_grad()
        losses = []
        for record, one in zip(records, margins, strict=True):
            chosen, rejected = plain_scores(plain, processor, record)
            losses.append(-F.logsigmoid(chosen - rejected - one) + 0.1 * (chosen + rejected) ** 2)
        torch.stack(losses).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)))
        optimizer.step()
    assert [row["grad_norm"] for row in read_jsonl(tmp_path / "log.jsonl")] == pytest.approx(norms, rel=1e-3)
    assert apart(model.state_dict(), plain.state_dict(), start) < 1e-3


def test_the_first_weights_of_the_head_depend_on_the_seed_alone() -> None:
    heads = []
    for seed in (0, 0, 1):
        model, _ = fresh_miniature()
        add_head(model, REWARD_HEAD, seed)
        heads.append(model.reward_head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.5 < float(heads[0].std() * heads[0].shape[1] ** 0.5) < 1.5


@pytest.mark.parametrize("lora_r", [0, 4])
def test_what_is_saved_is_loaded_by_one_call(lora_r: int, tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    records = scene_records(3)
    config = full_run(tmp_path, **STEADY | {"lora_r": lora_r, "save_steps": 1})
    trained = train(model, processor, records, StoredSource(), reward_modelling(), config).model
    file = "adapter_model" if lora_r else "model"
    assert not [name for name in load_file(tmp_path / f"final/{file}.safetensors") if REWARD_HEAD in name]
    assert list(load_file(tmp_path / "final/reward_head.safetensors")) == ["weight"]
    asked = records[0]["images"], records[0]["prompt"], ["A red car.", "", "A dog and a cat."]
    expected = RewardModel(trained, processor).rewards(*asked)
    for folder in ("final", "checkpoint-1"):
        assert RewardModel.from_pretrained(tmp_path / folder).rewards(*asked) == pytest.approx(expected, abs=1e-5)
    if lora_r:  # the model around which the adapters are stays
        assert all(torch.equal(value, before[name]) for name, value in fresh_miniature()[0].state_dict().items())
    else:
        own = plain_scores(trained, processor, records[0])
        found = RewardModel(trained, processor).rewards(*asked[:2], [records[0]["chosen"], records[0]["rejected"]])
        assert found == pytest.approx([float(one) for one in own], abs=1e-4)


def test_a_reward_model_learns_pairs_and_prints_a_table(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    pairs = [record | {"chosen": "There is a car.", "rejected": "There is a dog."} for record in scene_records(6)]
    turned = [record | {"chosen": record["rejected"], "rejected": record["chosen"]} for record in pairs[:3]]
    config = full_run(tmp_path, num_train_epochs=6, per_device_train_batch_size=4, **STEADY)
    train(model, processor, pairs, StoredSource(), reward_modelling(), config)
    last = read_jsonl(tmp_path / "log.jsonl")[-1]
    assert last["rewards/accuracies"] == 1 and last["rewards/margins"] > 0 and "nll_loss" not in last
    found = reward_accuracy({"cars": RewardModel(model, processor)}, {"cars": pairs, "turned": turned})
    assert (found.shares["cars"]["cars"].value, found.shares["cars"]["turned"].value) == (1, 0)
    assert str(found) == "trained on    cars  turned\ncars        100.00    0.00"


def test_more_responses_are_averaged(tmp_path: Path) -> None:
    def three(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates]:
        return [Candidates((one.record["chosen"], one.record["rejected"], "The bed is red.")) for one in examples]

    model, processor = fresh_miniature()
    plain = copy.deepcopy(model)
    (record,) = scene_records(1)
    config = full_run(tmp_path, **STEADY)
    train(model, processor, [record], three, reward_modelling(), config)
    add_head(plain, REWARD_HEAD, seed=0)
    with torch.no_grad():
        chosen, first = plain_scores(plain, processor, record)
        _, second = plain_scores(plain, processor, record | {"rejected": "The bed is red."})
    expected = -(F.logsigmoid(chosen - first) + F.logsigmoid(chosen - second)) / 2
    assert read_jsonl(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    with pytest.raises(ValueError, match="centering: needs a finite number of at least 0, got -1"):
        reward_modelling(centering=-1)
    with pytest.raises(ValueError, match="model: needs a reward head"):
        RewardModel(model, processor)
    with pytest.raises(ValueError, match="models: needs at least one"):
        reward_accuracy({}, {"pairs": scene_records(1)})
    add_head(model, REWARD_HEAD, seed=0)
    reward = RewardModel(model, processor)
    with pytest.raises(ValueError, match="pairs: row 1: needs the columns images, prompt, chosen, rejected"):
        reward_accuracy({"a": reward}, {"b": [scene_records(1)[0], {"prompt": "?"}]})
    with pytest.raises(ExampleError, match=r"pairs: row 0: .*needs an image"):
        reward_accuracy({"a": reward}, {"b": [scene_records(1)[0] | {"images": [b"x"]}]})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"folder: needs reward_head\.safetensors"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("source", "record", "message"),
    [
        (StoredSource(), {"margin": "much"}, "example 'scene-0': margin: needs a finite number, got 'much'"),
        (DistortedSource(), {}, "source: needs text for this objective, got distorted images for example 'scene-0'"),
        (SupervisedSource(), {}, "objective: needs two responses or more of each example"),
    ],
)
def test_data_that_does_not_fit_is_named(source: Any, record: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(*fresh_miniature(), [scene_records(1)[0] | record], source, reward_modelling(), full_run(tmp_path))
