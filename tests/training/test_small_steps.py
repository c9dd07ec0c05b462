"""Steps much smaller than the rounding of 16 bits reach the weights, whatever the model was loaded in."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, scene_records

from mmbdhs.logprobs import encode_record, response_logps
from mmbdhs.losses import dpo_loss
from mmbdhs.sampling import BDHSConfig, bdhs_sample
from mmbdhs.training import StoredSource, TrainConfig, pairwise, train
from mmbdhs.training.trainable import make_trainable, parameter_groups

peft = pytest.importorskip("peft")

DPO = pairwise(dpo_loss, beta=0.1)
RECORDS = scene_records(4)


def half(dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    model, processor = fresh_miniature()
    return model.to(dtype), processor


def projector(model: Any) -> dict[str, torch.Tensor]:
    """Its trained weights."""
    return {name: p for name, p in model.named_parameters() if "projector" in name and p.requires_grad}


def settings(tmp_path: Path, **more: Any) -> TrainConfig:
    fixed = {"projector_learning_rate": 2e-6, "lora_r": 4, "per_device_train_batch_size": 2, "logging_steps": 1}
    return TrainConfig(tmp_path, **fixed | more)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hundred_small_steps_add_up(tmp_path: Path, rank: int, dtype: torch.dtype) -> None:
    """AdamW moves a weight by its rate whatever the gradient's size, as long as the sign stays: 100 · 2e-6."""
    model = make_trainable(half(dtype)[0], settings(tmp_path, lora_r=rank))
    before = copy.deepcopy(projector(model))
    optimizer = torch.optim.AdamW(parameter_groups(model, settings(tmp_path)), weight_decay=0.0)
    for _ in range(100):
        for parameter in projector(model).values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = torch.cat([(before[name] - now).flatten() for name, now in projector(model).items()])
    assert before and (moved - 2e-4).abs().lt(2e-6).double().mean() > 0.99


def test_a_run_in_half_precision_starts_where_its_reference_is(tmp_path: Path) -> None:
    model, processor = half()
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    result = train(model, processor, RECORDS, StoredSource(), DPO, settings(tmp_path, learning_rate=1e-3))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["rewards/margins"] == 0.0 and rows[1]["rewards/margins"] > 0
    base = result.model.get_base_model()
    for name, parameter in base.named_parameters():
        if not parameter.requires_grad and "projector" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer", "")]), name
    assert {p.dtype for p in projector(result.model).values()} == {torch.float32}


def test_a_model_with_a_float32_projector_samples_and_is_loaded_as_before(tmp_path: Path) -> None:
    model, processor = half()
    result = train(model, processor, RECORDS, StoredSource(), DPO, settings(tmp_path, learning_rate=1e-3))
    columns = [[record[name] for record in RECORDS] for name in ("images", "prompt", "chosen")]
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=6)

    def sampled(model: Any) -> list[Any]:
        return bdhs_sample(model, processor, *columns, config, lambda first, second: [0.0] * len(first))

    base = half()[0]
    loaded = peft.PeftModel.from_pretrained(base, result.folder).eval()
    assert {p.dtype for name, p in loaded.named_parameters() if "projector" in name} == {torch.bfloat16}
    assert sampled(loaded) == sampled(result.model)  # the same weights, once they are rounded
    prompt, ids = encode_record(loaded, processor, RECORDS[0])
    with torch.no_grad():
        first, second = (response_logps(one.eval(), [prompt], [ids]).sums for one in (loaded, result.model))
    assert torch.equal(first, second)


def test_what_stays_in_16_bits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A projector of which only the biases are trained."""
    model, _ = half()
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"]))
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("projector" in name and name.endswith("bias"))
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        make_trainable(lora, settings(tmp_path, lora_r=0, projector_learning_rate=None))
    assert "some trained parameters are not float32" in caplog.text
