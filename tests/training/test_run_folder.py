"""A folder belongs to one run and one process, and survives what stops them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, full_run, scene_records

from mmbdhs import BDHSConfig
from mmbdhs.data import data_fingerprint
from mmbdhs.losses import dpo_loss, ipo_loss
from mmbdhs.runs import describe, differences, model_fingerprint
from mmbdhs.training import OnlineBDHSSource, StoredSource, pairwise, train
from mmbdhs.training import checkpoints as files
from mmbdhs.training.run_folder import run_folder
from mmbdhs.training.run_identity import run_identity

DPO = pairwise(dpo_loss, beta=0.1)


def run(folder: Path, **changes: Any) -> Any:
    """A run of two steps with a checkpoint after each; `changes` replace its parts and settings."""
    parts = {"records": scene_records(4), "source": StoredSource(), "objective": DPO, "model": fresh_miniature()}
    parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
    settings = {"per_device_train_batch_size": 2, "save_steps": 1, "logging_steps": 1, "learning_rate": 1e-4} | changes
    config = full_run(folder, **settings)
    return train(*parts["model"], parts["records"], parts["source"], parts["objective"], config)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("save_steps", [0, 1])
def test_a_finished_run_is_not_overwritten(save_steps: int, tmp_path: Path) -> None:
    run(tmp_path, save_steps=save_steps)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"output_dir: needs a folder without a run, .* already contains"):
        run(tmp_path, max_steps=1)
    assert contents(tmp_path) == before


def swapped(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"chosen": record["rejected"], "rejected": record["chosen"]}


def other_model() -> tuple[Any, Any]:
    model, processor = fresh_miniature()
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(0.01)
    return model, processor


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"objective": pairwise(ipo_loss)}, r"objective\.loss: 'mmbdhs.losses.preference.dpo_loss', now '.*ipo_loss'"),
        ({"objective": pairwise(dpo_loss, beta=0.2)}, r"objective\.settings\.beta: 0\.1, now 0\.2"),
        ({"learning_rate": 1e-2}, r"config\.learning_rate: 0\.0001, now 0\.01"),
        ({"lr_scheduler_type": "linear"}, r"config\.lr_scheduler_type: 'cosine', now 'linear'"),
        ({"per_device_train_batch_size": 3}, r"config\.batch_size: 2, now 3"),
        ({"seed": 7}, r"config\.seed: 0, now 7"),
        ({"source": OnlineBDHSSource()}, r"source\.type: '.*StoredSource', now '.*OnlineBDHSSource'"),
        ({"records": [swapped(record) for record in scene_records(4)]}, r"data\.fingerprint: '\w+', now '\w+'"),
        ({"records": scene_records(5)}, r"data\.fingerprint: .*; data\.records: 4, now 5"),
        ({"model": other_model()}, r"model: '\w+', now '\w+'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_with_other_values_does_not_resume(
    changes: dict[str, Any], difference: str, tmp_path_factory: pytest.TempPathFactory, begun: Callable[[], Path]
) -> None:
    folder = begun()
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"holds another run, this one differs in {difference}"):
        run(folder, num_train_epochs=2, resume_from_checkpoint=True, **changes)
    assert contents(folder) == before


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    run(folder)
    return folder


@pytest.fixture
def begun(first: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of a run of two steps that was to be longer: it has checkpoints, but no final model."""

    def copy() -> Path:
        folder = tmp_path / "run"
        subprocess.check_call(["cp", "-r", first, folder])
        subprocess.check_call(["rm", "-r", folder / "final"])
        return folder

    return copy


def test_a_difference_is_accepted_once_its_entry_is_deleted(begun: Callable[[], Path]) -> None:
    folder = begun()
    record = json.loads((folder / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"versions\.torch: '1\.0', now '.*delete its entry in .*run\.json"):
        run(folder, num_train_epochs=2, resume_from_checkpoint=True)
    del record["versions"]["torch"]
    (folder / "run.json").write_text(json.dumps(record))
    assert run(folder, num_train_epochs=2, resume_from_checkpoint=True).steps == 4
    assert json.loads((folder / "run.json").read_text())["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "missing file", "renamed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    damage: str, begun: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = begun()
    file = folder / "checkpoint-2/trainer.pt"
    raw = bytearray(file.read_bytes())
    half = len(raw) // 2
    changed = {"empty": b"", "half": raw[:half], "flipped": raw[:half] + bytes([raw[half] ^ 16]) + raw[half + 1 :]}
    if damage in changed:
        file.write_bytes(changed[damage])
    elif damage == "missing file":
        (folder / "checkpoint-2/model.safetensors").unlink()
    else:
        (folder / "checkpoint-2").rename(folder / "checkpoint-3")
    assert run(folder, num_train_epochs=2, resume_from_checkpoint=True).steps == 4
    assert "is damaged" in caplog.text and "checkpoint-" in caplog.text
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4]


def test_without_a_whole_checkpoint_the_run_says_so(begun: Callable[[], Path]) -> None:
    folder = begun()
    for number in (1, 2):
        (folder / f"checkpoint-{number}/trainer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"resume: needs a checkpoint that is whole, got .*-2: .*; .*-1: "):
        run(folder, num_train_epochs=2, resume_from_checkpoint=True)


def test_a_log_that_was_cut_short_continues(begun: Callable[[], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = begun()
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 3, "epo')
    assert run(folder, num_train_epochs=2, resume_from_checkpoint=True).steps == 4
    assert "dropped its last line" in caplog.text and [row["step"] for row in rows(folder)] == [1, 2, 3, 4]


def test_what_a_kill_leaves_is_deleted_and_other_files_stay(begun: Callable[[], Path]) -> None:
    folder = begun()
    for name in (".checkpoint-1.partial", ".final.partial", ".final.previous", ".mine.partial", "notes"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    (folder / ".log.jsonl.abc").touch()
    run(folder, num_train_epochs=2, resume_from_checkpoint=True)
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if name.startswith(".")} == {".mine.partial"} and "notes" in names


def test_an_exchange_that_was_interrupted_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".final.previous").mkdir()
    (tmp_path / ".final.partial").mkdir()
    files.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_old_folder_is_there_until_the_new_one_is(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of the file system the old or the new folder is there, or `recover` restores the old one."""
    for name, text in (("final", "old"), (".final.partial", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(text)
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    seen = []
    plain = os.replace

    def replace(source: Path, target: Path) -> None:
        plain(source, target)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    monkeypatch.setattr(os, "replace", replace)
    files._take_place(tmp_path / ".final.partial", tmp_path / "final")
    assert (tmp_path / "final/text").read_text() == "new"
    assert seen == ([] if exchanges else [[".final.partial", ".final.previous"], [".final.previous", "final"]])


HOLDER = """
import sys
from pathlib import Path
from mmbdhs.training.run_folder import run_folder
with run_folder(Path(sys.argv[1]), {}, False, True):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_and_a_killed_one_is_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(ValueError, match=r"output: .* is in use by another process"),
        run_folder(tmp_path / "out", {}, False, True),
    ):
        pass
    holder.kill()
    holder.communicate()
    with run_folder(tmp_path / "out", {}, False, True) as checkpoint:
        assert checkpoint is None


def test_an_error_on_a_full_disk_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writers of tensors raise errors of their own there, such as RuntimeError."""

    class Model:
        def save_pretrained(self, folder: Path, **_: Any) -> None:
            raise RuntimeError("unexpected pos 779072 vs 778964")

    class Usage:
        free = 1000

    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(OSError, match=r"No space left on device: .*final was not written; checkpoints that are: none"):
        files.save_model(tmp_path / "final", Model(), Model(), {}, "card")
    Usage.free = 2**40
    with pytest.raises(RuntimeError, match="unexpected pos"):
        files.save_model(tmp_path / "final", Model(), Model(), {}, "card")
    assert not list(tmp_path.iterdir())


class Client:
    api_key = "sk-SECRET"


def test_a_record_holds_no_secrets_and_no_objects() -> None:
    source = OnlineBDHSSource(BDHSConfig(seed=3), similarity="some/model")
    config = full_run("x", lora_r=4)
    found = run_identity(*fresh_miniature()[:1], None, scene_records(2), source, DPO, config, batch_size=8)
    assert found == json.loads(json.dumps(found))
    assert found["source"]["config"]["seed"] == 3 and found["source"]["similarity"] == "some/model"
    assert found["config"]["lora_r"] == 4 and "output_dir" not in found["config"]
    assert found["versions"]["torch"] and found["reference"] is None
    described = describe(
        {"client": Client(), "api_key": "sk-SECRET", "hf_token": "SECRET", "call": len, "kind": Client}
    )
    assert "SECRET" not in json.dumps(described)
    assert described["call"] == "builtins.len" and described["client"].endswith("Client")


def test_differences_are_named_by_path() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 5}
    assert differences(old, {"a": {"b": 2, "c": [1, 3]}, "d": None}) == [
        "a.b: 1, now 2",
        "a.c: [1, 2], now [1, 3]",
        "e: 5, now None",
    ]
    assert differences({}, old) == []


def test_fingerprints_see_content() -> None:
    model, _ = fresh_miniature()
    before = model_fingerprint(model)
    assert before == model_fingerprint(fresh_miniature()[0]) != model_fingerprint(other_model()[0])
    records = scene_records(3)
    assert data_fingerprint(records) == data_fingerprint(scene_records(3))
    paths = [[record | {"images": [name]} for record in records] for name in ("a.png", "b.png")]
    found = [data_fingerprint(given)["fingerprint"] for given in (records, records[::-1], *paths)]
    assert len(set(found)) == 4
