"""TRL's DPOTrainer trains on sampled pairs from disk without changes, and takes the same steps as ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import write_scenes
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.data.jsonl import read_jsonl, write_jsonl
from mmbdhs.data.readers import open_records
from mmbdhs.data.records import preference_record
from mmbdhs.losses import dpo_loss
from mmbdhs.pairs import sample_dataset
from mmbdhs.training.objectives import pairwise
from mmbdhs.training.pair_sources import StoredSource
from mmbdhs.training.trainer import train

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS = 3
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
METRICS += ("logps/chosen", "logps/rejected")


def jsonl_pairs(folder: Path) -> tuple[Path, Any]:
    """Sampled pairs in a JSONL file with image paths, and as TRL gets them."""
    records = []
    for record in scene_records(4):
        image = folder / f"{record['key']}.png"
        record["images"][0].save(image)
        asked = [image], [record["prompt"]], [record["chosen"]]
        (sample,) = bdhs_sample(*fresh_miniature(), *asked, BDHSConfig(), unlike, [record["key"]])
        records.append(preference_record([image], record["prompt"], record["chosen"], sample, 0))
    file = folder / "pairs.jsonl"
    write_jsonl(file, records)
    return file, datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))


def shard_pairs(folder: Path) -> tuple[Path, Any]:
    """The same for the folder of a run, whose shards hold the images."""
    run = sample_dataset(*fresh_miniature(), write_scenes(folder / "scenes", 4), folder / "run", BDHSConfig(), unlike)
    return run.folder, datasets.load_dataset(str(run.folder), split="train", cache_dir=str(folder / "cache"))


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def with_trl(model: Any, processor: Any, data: Any, folder: Path) -> list[dict[str, float]]:
    """Train with TRL, which opens images itself."""
    settings = trl.DPOConfig(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=STEPS,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        beta=0.1,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    )
    trainer = trl.DPOTrainer(model, None, settings, train_dataset=data, processing_class=processor)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("saved", [jsonl_pairs, shard_pairs])
def test_trl_trains_on_what_is_saved_and_takes_the_same_steps(
    saved: Callable[[Path], tuple[Path, Any]], tmp_path: Path
) -> None:
    pairs, data = saved(tmp_path)
    model, processor = fresh_miniature()
    processor = copy.deepcopy(processor)
    # TRL leaves out the BOS if the template does not write it; transformers and this library let the tokenizer add it.
    processor.chat_template = processor.tokenizer.bos_token + processor.chat_template
    peer, start = fresh_miniature()[0], fresh_miniature()[0].state_dict()
    settings = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1}
    config = full_run(tmp_path / "ours", num_train_epochs=STEPS, **settings)
    train(model, processor, open_records(pairs), StoredSource(), pairwise(dpo_loss, beta=0.1), config)
    peer.model.vision_tower.requires_grad_(False)
    theirs = with_trl(peer, processor, data, tmp_path / "theirs")
    ours = read_jsonl(tmp_path / "ours/log.jsonl")
    for name in METRICS:
        assert [row[name] for row in ours] == pytest.approx([float(row[name]) for row in theirs], rel=1e-3, abs=1e-4)
    assert apart(model.state_dict(), peer.state_dict(), start) < 1e-3
