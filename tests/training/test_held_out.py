"""Numbers of held-out records, and where the numbers of a run go: log, trackers, model card, the Hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, full_run, scene_records

from mmbdhs.logprobs import encode_record, separate_logps
from mmbdhs.losses import dpo_loss
from mmbdhs.sampling import BDHSConfig
from mmbdhs.training import OnlineBDHSSource, StoredSource, pairwise, train
from mmbdhs.training import hub as hub_module
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.preparation import make_accelerator

pytest.importorskip("accelerate")

DPO = pairwise(dpo_loss, beta=0.1)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_held_out_numbers_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    start, processor = fresh_miniature()
    held_out = scene_records(14)[9:]
    config = full_run(tmp_path, learning_rate=1e-3, eval_steps=2, logging_steps=1)
    model = train(
        *fresh_miniature(),
        scene_records(12),
        StoredSource(),
        DPO,
        config,
        eval_records=held_out,
        evaluate=lambda m, n: {"steps": n},
    ).model
    found = [row for row in rows(tmp_path) if "eval_loss" in row]
    assert [row["step"] for row in found] == [2, 3] == [row["eval_steps"] for row in found]

    prompts, ids = zip(*(encode_record(start, processor, record) for record in held_out), strict=True)
    with torch.no_grad():
        policy, reference = (separate_logps(one.eval(), prompts, ids).sums for one in (model, start))
    result = dpo_loss(*policy.T, *reference.T, beta=0.1)
    margins = result.chosen_rewards - result.rejected_rewards
    expected = {
        "eval_loss": result.losses.mean(),
        "eval_rewards/chosen": result.chosen_rewards.mean(),
        "eval_rewards/rejected": result.rejected_rewards.mean(),
        "eval_rewards/margins": margins.mean(),
        "eval_rewards/accuracies": (margins > 0).float().mean(),
        "eval_logps/chosen": policy[:, 0].mean(),
        "eval_logps/rejected": policy[:, 1].mean(),
    }
    for name, value in expected.items():
        assert found[-1][name] == pytest.approx(float(value), rel=1e-4), name


def test_held_out_numbers_leave_no_trace_in_training(tmp_path: Path) -> None:
    """Dropout is drawn as without them, no gradient is left over, and the model is in training mode."""
    models = []
    for held_out in (None, scene_records(5)):
        config = full_run(
            tmp_path / str(held_out is None), lora_r=4, lora_dropout=0.2, learning_rate=1e-3, eval_steps=1
        )
        run = *fresh_miniature(), scene_records(8), StoredSource(), DPO, config
        models.append(train(*run, eval_records=held_out).model)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_online_source_draws_the_same_responses_at_each_evaluation(tmp_path: Path) -> None:
    """With a learning rate of 0 the policy stays, so the numbers do."""
    source = OnlineBDHSSource(BDHSConfig(max_iterations=1), lambda a, b: [0.0] * len(a))
    config = full_run(tmp_path, learning_rate=0.0, eval_steps=1)
    train(*fresh_miniature(), scene_records(8), source, DPO, config, eval_records=scene_records(3))
    first, second = (
        {k: v for k, v in row.items() if k.startswith("eval_")} for row in rows(tmp_path) if "eval_loss" in row
    )
    assert first == second


def test_held_out_records_are_checked_before_training(tmp_path: Path) -> None:
    held_out = [{"images": [], "prompt": "What?", "chosen": "A car."}, *scene_records(1)]
    del held_out[1]["rejected"]
    with pytest.raises(ValueError, match="eval_records: row 1: needs the columns images, prompt, chosen, rejected"):
        train(*fresh_miniature(), scene_records(4), StoredSource(), DPO, full_run(tmp_path), eval_records=held_out)


def test_trackers_get_what_the_log_gets(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = full_run(tmp_path, logging_steps=1, report_to=["tensorboard"], learning_rate=1e-3)
    train(*fresh_miniature(), scene_records(8), StoredSource(), DPO, config, eval_records=scene_records(2))
    found = events.EventAccumulator(str(tmp_path / "runs/mmbdhs")).Reload()
    for name in ("loss", "rewards/margins", "logps/chosen", "learning_rate", "eval_loss"):
        written = {row["step"]: row[name] for row in rows(tmp_path) if name in row}
        shown = {event.step: event.value for event in found.Scalars(name)}
        assert shown.keys() == written.keys() and shown == pytest.approx(written, rel=1e-6)


def test_a_resumed_run_hides_the_points_after_its_checkpoint(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    common = {"logging_steps": 1, "report_to": ["tensorboard"], "save_steps": 1, "save_total_limit": 9}

    def run(**more: Any) -> None:
        config = full_run(tmp_path, **common, **more)
        train(*fresh_miniature(), scene_records(12), StoredSource(), DPO, config)

    run()
    for name in ("final", "checkpoint-3", "checkpoint-2"):
        (tmp_path / name).rename(tmp_path.parent / name)
    run(resume_from_checkpoint=True)
    found = events.EventAccumulator(str(tmp_path / "runs/mmbdhs")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]


def test_trackers_that_are_not_installed_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report_to: needs trackers of Accelerate that are installed \(.*tensorboard"):
        make_accelerator(TrainConfig(tmp_path, report_to=["wandbee"]))


def test_the_model_card_says_what_was_done(tmp_path: Path) -> None:
    config = full_run(tmp_path, lora_r=4, learning_rate=1e-3, seed=7, save_steps=1)
    train(*fresh_miniature(), scene_records(8), StoredSource(), DPO, config, eval_records=scene_records(2))
    run = json.loads((tmp_path / "run.json").read_text())
    for folder in ("final", "checkpoint-1"):
        card = (tmp_path / folder / "README.md").read_text()
        head, body = card.removeprefix("---\n").split("\n---\n", 1)
        assert "library_name: peft" in head and "base_model:" not in head  # a folder is no name on the Hub
        for text in (
            "StoredSource",
            "dpo_loss",
            "| seed | `7` |",
            run["data"]["fingerprint"],
            run["model"],
            run["versions"]["torch"],
        ):
            assert text in body
    assert f"| eval_loss | {rows(tmp_path)[-1]['eval_loss']:.4g} |" in (tmp_path / "final/README.md").read_text()
    assert "More Information Needed" not in card


def test_the_final_model_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def create_repo(name: str, **settings: Any) -> Any:
        calls.append({"create": name} | settings)
        return type("Found", (), {"repo_id": f"me/{name}"})

    monkeypatch.setattr("huggingface_hub.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **settings: calls.append(settings))
    config = full_run(tmp_path / "aligned", push_to_hub=True, hub_private_repo=True)
    train(*fresh_miniature(), scene_records(4), StoredSource(), DPO, config)
    created, uploaded = calls
    assert created == {"create": "aligned", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/aligned", tmp_path / "aligned/final")


def test_a_missing_login_is_found_before_training_and_a_failed_upload_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    run = *fresh_miniature(), scene_records(4), StoredSource(), DPO
    monkeypatch.setattr("huggingface_hub.create_repo", fail)
    with pytest.raises(ValueError, match="push_to_hub: cannot create the repository 'one' on the Hub: no network"):
        train(*run, full_run(tmp_path, push_to_hub=True, hub_model_id="one"))
    assert not (tmp_path / "log.jsonl").exists()
    monkeypatch.setattr("huggingface_hub.upload_folder", fail)
    with pytest.raises(
        OSError, match=r"complete in here, but was not uploaded: no network\. Try .*: hf upload me/one here"
    ):
        hub_module.HubModel("me/one").upload(Path("here"))


def test_the_log_says_which_trackers_are_live(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmbdhs"):
        train(*fresh_miniature(), scene_records(2), StoredSource(), DPO, full_run(tmp_path))
    assert "writing log.jsonl, and to no tracker" in caplog.text
