"""`PackedDPOTrainer` takes the steps of TRL's `DPOTrainer`: so many as MMBDHS_TRL_STEPS says."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import apart
from torch import Tensor

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from helpers.trl_runs import PLAIN, loaded, pairs  # noqa: E402
from peft import LoraConfig  # noqa: E402

from mmbdhs.trl import PackedCollator, PackedDPOTrainer  # noqa: E402

STEPS = int(os.environ.get("MMBDHS_TRL_STEPS", "4"))
# Of the mean over all tokens; both sides round differently.
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
METRICS += ("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy")


def trained(
    trainer: type, family: str, folder: Path, data: Any = None, held_out: Any = None, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict]]:
    """The adapters before and after a run, and its log, which ends with the figures of held-out pairs."""
    model, processor = loaded(family)
    config = trl.DPOConfig(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        **PLAIN,
        **settings,
    )
    torch.manual_seed(0)
    run = trainer(
        model,
        None,
        config,
        train_dataset=pairs(family) if data is None else data,
        eval_dataset=pairs(family).select(range(3)) if held_out is None else held_out,
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    start = {name: value.detach().clone() for name, value in run.model.state_dict().items() if "lora" in name}
    run.train()
    held_out = {name.removeprefix("eval_"): value for name, value in run.evaluate().items()}
    log = [row for row in run.state.log_history if "loss" in row] + [held_out | {"grad_norm": 0.0}]
    ended = run.model.state_dict()
    return start, {name: ended[name].detach().clone() for name in start}, log


def assert_equal_logs(ours: list[dict], theirs: list[dict]) -> None:
    for our_row, their_row in zip(ours, theirs, strict=True):
        for name in METRICS:
            assert float(our_row[name]) == pytest.approx(float(their_row[name]), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("family", ["miniature", "llava", "llava_next", "qwen2_5_vl"])
def test_steps_are_those_of_trl(family: str, tmp_path: Path) -> None:
    start, ours, our_log = trained(PackedDPOTrainer, family, tmp_path / "ours")
    same, theirs, their_log = trained(trl.DPOTrainer, family, tmp_path / "theirs")
    assert all(torch.equal(start[name], same[name]) for name in start)
    assert len(our_log) == len(their_log) == STEPS + 1
    assert_equal_logs(our_log, their_log)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    assert apart(ours, theirs, start) < 1e-4


def test_a_second_model_is_the_reference_where_there_are_no_adapters(tmp_path: Path) -> None:
    """All parameters are trained, and the reference is another model than the policy."""
    logs = []
    for trainer in (PackedDPOTrainer, trl.DPOTrainer):
        policy, processor = loaded("llava")
        reference = copy.deepcopy(policy)
        with torch.no_grad():
            reference.lm_head.weight += 0.01
        config = trl.DPOConfig(str(tmp_path), max_steps=3, per_device_train_batch_size=3, **PLAIN)
        run = trainer(policy, reference, config, train_dataset=pairs("llava"), processing_class=processor)
        run.train()
        logs.append([row for row in run.state.log_history if "loss" in row])
    assert_equal_logs(*logs)


def test_stored_reference_log_probabilities_take_the_place_of_a_reference(tmp_path: Path) -> None:
    data = pairs("llava")
    model, processor = loaded("llava")
    run = PackedDPOTrainer(
        model,
        None,
        trl.DPOConfig(str(tmp_path), **PLAIN),
        train_dataset=data,
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )
    batch = run._prepare_inputs(run.data_collator(list(data)))
    chosen, rejected = run.compute_ref_log_probs(run.model, batch)
    stored = data.add_column("ref_chosen_logps", chosen.tolist()).add_column("ref_rejected_logps", rejected.tolist())
    _, with_stored, _ = trained(PackedDPOTrainer, "llava", tmp_path / "stored", stored, stored.select(range(3)))
    _, without, _ = trained(PackedDPOTrainer, "llava", tmp_path / "without")
    for name in with_stored:
        torch.testing.assert_close(with_stored[name], without[name], rtol=1e-4, atol=1e-5)


def test_reference_log_probabilities_are_computed_first_where_that_is_asked_for(tmp_path: Path) -> None:
    """Of held-out pairs too. TRL refuses this for images."""
    data = pairs("llava")
    runs = [
        trained(
            *(PackedDPOTrainer, "llava", tmp_path, data),
            held_out={"some": data.select(range(3)), "others": data.select(range(3, 8))},
            precompute_ref_log_probs=precompute,
            precompute_ref_batch_size=3,
        )
        for precompute in (True, False)
    ]
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], rtol=0, atol=1e-5)
    for name in ("some_loss", "others_loss"):
        assert runs[0][2][-1][name] == pytest.approx(runs[1][2][-1][name], rel=1e-5, abs=1e-5)


def test_a_streamed_data_set_with_workers_gives_the_steps_of_trl(tmp_path: Path) -> None:
    logs = [
        trained(trainer, "llava", tmp_path, pairs("llava").to_iterable_dataset(3), dataloader_num_workers=2)[2]
        for trainer in (PackedDPOTrainer, trl.DPOTrainer)
    ]
    assert_equal_logs(*logs)


@pytest.mark.parametrize("loss_type", [["ipo"], ["sigmoid", "sft"], ["apo_zero"]])
def test_other_losses_of_trl(loss_type: list[str], tmp_path: Path) -> None:
    logs = [
        trained(trainer, "llava", tmp_path, loss_type=loss_type)[2] for trainer in (PackedDPOTrainer, trl.DPOTrainer)
    ]
    for ours, theirs in zip(*logs, strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5, abs=1e-5)


def test_responses_are_cut_and_prompts_are_not(tmp_path: Path) -> None:
    _, processor = loaded("llava")
    examples = list(pairs("llava"))[:2]
    whole = PackedCollator(processor)(examples)
    prompt = whole["packed_prompts"][0]["input_ids"].shape[1]
    cut = PackedCollator(processor, max_length=prompt + 2)(examples)
    assert cut["completion_mask"].sum(dim=1).tolist() == [2, 2, 2, 2] and cut["input_ids"].shape[1] == prompt + 2
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, : prompt + 2])
    with pytest.raises(ValueError, match=f"max_length: needs more than the {prompt} tokens of an image prompt, got 10"):
        PackedCollator(processor, max_length=10)(examples)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"processing_class": "tokenizer"}, ValueError, "The dataset appears to be vision-related"),
        ({"data_collator": print}, ValueError, "data_collator: needs None"),
        ({"train_dataset": "text"}, ValueError, "train_dataset: needs a column images or image"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model, processor = loaded("llava")
    data = pairs("llava")
    arguments = {"train_dataset": data, "processing_class": processor} | change
    if arguments["train_dataset"] == "text":
        arguments["train_dataset"] = data.remove_columns("images")
    if arguments["processing_class"] == "tokenizer":
        arguments["processing_class"] = processor.tokenizer
    settings = LoraConfig(r=4, target_modules=["q_proj"])
    with pytest.raises(error, match=message):
        PackedDPOTrainer(model, None, trl.DPOConfig(str(tmp_path), **PLAIN), peft_config=settings, **arguments)


def test_a_trainer_that_lost_the_forward_of_its_model_says_so(tmp_path: Path) -> None:
    model, processor = loaded("llava")
    config = trl.DPOConfig(str(tmp_path), max_steps=1, **PLAIN)
    reference = copy.deepcopy(model)
    ours, _ = (
        kind(model, reference, config, train_dataset=pairs("llava"), processing_class=processor)
        for kind in (PackedDPOTrainer, trl.DPOTrainer)
    )
    with pytest.raises(RuntimeError, match="another trainer of TRL took its forward"):
        ours.train()
