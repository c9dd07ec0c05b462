"""The trainer against a plain training loop, against itself with other micro-batches, and after being killed."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mmbdhs import BDHSConfig
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.padded import separate_logps
from mmbdhs.logprobs.preferences import encode_record, stored_reference_logps
from mmbdhs.logprobs.responses import ResponseLogps
from mmbdhs.losses import dpo_loss
from mmbdhs.training.config import TrainConfig
from mmbdhs.training.objectives import pairwise, supervised
from mmbdhs.training.pair_sources import Candidates, OnlineBDHSSource, StoredSource, SupervisedSource, TrainingExample
from mmbdhs.training.trainable import make_trainable, trained_modules
from mmbdhs.training.trainer import NonFiniteLossError, TrainResult, train
from mmbdhs.vlm import VLM

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

DPO = pairwise(dpo_loss, beta=0.1)
FAST = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 1}


def trained(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same(found: Any, expected: Any) -> None:
    first, second = trained(found), trained(expected)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def assert_near(found: Any, expected: Any) -> None:
    """Compare models trained from the shipped weights, up to rounding."""
    start = trained(fresh_miniature()[0])
    assert apart(trained(found), trained(expected), start) < 1e-3


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def uneven(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates | None]:
    """One of five examples is undecided, and two have a third response."""

    def candidates(example: TrainingExample) -> Candidates | None:
        number, texts = int(str(example.key).split("-")[1]), (example.record["chosen"], example.record["rejected"])
        return None if number % 5 == 0 else Candidates((*texts, *["The bed is red."] * (number % 5 < 3)))

    return [candidates(example) for example in examples]


def test_a_step_is_that_of_the_mean_over_the_whole_batch(tmp_path: Path) -> None:
    """The plain loop runs each response as a row of its own, all decided examples in one batch, and AdamW."""
    model, processor = fresh_miniature()
    records = scene_records(11)
    settings = {"learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_steps": 0, "logging_steps": 1}
    config = full_run(tmp_path, gradient_accumulation_steps=3, num_train_epochs=2, **settings)
    plain = copy.deepcopy(model)

    def source(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates | None]:
        found = StoredSource()(model, processor, examples)
        undecided = [example.key in ("scene-2", "scene-7") for example in examples]
        return [None if skip else one for skip, one in zip(undecided, found, strict=True)]

    train(model, processor, records, source, DPO, config)
    del records[7], records[2]

    plain.model.vision_tower.requires_grad_(False)
    reference = copy.deepcopy(plain)
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    prompts, ids = zip(*(encode_record(plain, processor, record) for record in records), strict=True)
    norms = []
    for rate in (1e-3, 0.5e-3):
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = rate
        policy = separate_logps(plain, prompts, ids).sums
        with torch.no_grad():
            known = separate_logps(reference, prompts, ids).sums
        dpo_loss(*policy.T, *known.T, beta=0.1).losses.mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)))
        optimizer.step()
    assert_near(model, plain)
    assert [row["grad_norm"] for row in rows(tmp_path)] == pytest.approx(norms, rel=1e-4)


def test_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    models, norms = [], []
    for size, passes in ((1, 8), (2, 4), (8, 1)):
        model, processor = fresh_miniature()
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        config = full_run(tmp_path / str(size), num_train_epochs=2, **FAST | sizes)
        models.append(train(model, processor, scene_records(11), uneven, DPO, config).model)
        norms.append([row["grad_norm"] for row in rows(tmp_path / str(size))])
        assert sum(row["undecided"] for row in rows(tmp_path / str(size))) == 6
    for other, its_norms in zip(models[1:], norms[1:], strict=True):
        assert_near(other, models[0])
        assert its_norms == pytest.approx(norms[0], rel=1e-4)


def test_a_step_without_anything_to_learn_changes_nothing(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    before = copy.deepcopy(model)
    train(model, processor, scene_records(2), lambda m, p, examples: [None] * len(examples), DPO, full_run(tmp_path))
    assert_same(model, before)
    assert rows(tmp_path)[-1]["undecided"] == 2 and "loss" not in rows(tmp_path)[-1]


def test_every_epoch_visits_every_example_once_in_another_order(tmp_path: Path) -> None:
    visited: list[str] = []

    def source(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates | None]:
        assert not model.training
        visited.extend(example.address for example in examples)
        return [None] * len(examples)

    train(*fresh_miniature(), scene_records(7), source, DPO, full_run(tmp_path, num_train_epochs=2, **FAST))
    first, second = visited[:7], visited[7:]
    assert sorted(first) == [f"scene-{number}#0" for number in range(7)]
    assert sorted(second) == [f"scene-{number}#1" for number in range(7)]
    assert [address[:-1] for address in first] != [address[:-1] for address in second]


def stop_after(step: int) -> Callable[[Any, int], dict[str, float]]:
    """An evaluation during which the process gets SIGTERM; the step after it is finished first."""

    def evaluate(model: Any, now: int) -> dict[str, float]:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"step": now}

    return evaluate


BDHS = OnlineBDHSSource(BDHSConfig(max_iterations=1), lambda a, b: [0.0] * len(a))


@pytest.mark.parametrize(
    "source, settings",
    [
        (StoredSource(), {}),
        (StoredSource(), {"lora_r": 4, "lora_dropout": 0.1, "projector_learning_rate": 1e-2}),
        (BDHS, {}),
    ],
    ids=["all parameters", "adapters with dropout", "online"],
)
def test_a_resumed_run_is_an_uninterrupted_one_to_the_bit(
    source: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(name: str, evaluate: Any = None, **more: Any) -> TrainResult:
        config = full_run(tmp_path / name, num_train_epochs=2, eval_steps=1, **FAST, **settings, **more)
        torch.manual_seed(len(name))  # the state of the caller's generator has no influence
        return train(*fresh_miniature(), scene_records(9), source, DPO, config, evaluate=evaluate)

    whole = run("whole", stop_after(-1))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    killed = run("cut", stop_after(3))
    assert (killed.steps, killed.interrupted) == (4, signal.SIGTERM)
    assert killed.folder == tmp_path / "cut/checkpoint-4"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed = run("cut", stop_after(-1), resume_from_checkpoint=True)
    assert (resumed.steps, resumed.interrupted, resumed.folder) == (6, None, tmp_path / "cut/final")
    assert_same(resumed.model, whole.model)
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("whole", "cut")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_log_lines_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    def fail(model: Any, step: int) -> dict[str, float]:
        if step == 3:
            raise RuntimeError("power cut")
        return {}

    def run(**more: Any) -> TrainResult:
        config = full_run(tmp_path, save_steps=2, eval_steps=1, **FAST, resume_from_checkpoint=True)
        return train(*fresh_miniature(), scene_records(16), StoredSource(), DPO, config, **more)

    with pytest.raises(RuntimeError, match="power cut"):
        run(evaluate=fail)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3]
    run()
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4]


def test_only_the_run_of_a_checkpoint_resumes_from_it(tmp_path: Path) -> None:
    def run(**more: Any) -> TrainResult:
        config = full_run(tmp_path, save_steps=1, **FAST | more)
        return train(*fresh_miniature(), scene_records(4), StoredSource(), DPO, config)

    run()
    with pytest.raises(ValueError, match=r"output_dir: .* contains checkpoint-1. Pass resume_from_checkpoint=True to"):
        run()
    with pytest.raises(ValueError, match=r"holds another run, .* in config\.seed: 0, now 1\. Use its data"):
        run(resume_from_checkpoint=True, seed=1)


def test_what_is_saved_loads_as_any_model(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    config = full_run(tmp_path, save_steps=1, save_total_limit=2, **FAST)
    result = train(model, processor, scene_records(12), StoredSource(), DPO, config)
    assert {path.name for path in tmp_path.glob("checkpoint*")} == {"checkpoint-2", "checkpoint-3"}
    assert_same(AutoModelForImageTextToText.from_pretrained(result.folder, dtype="float32"), model)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_adapters_are_on_the_text_decoder_alone(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = getattr(tiny_models, family)()
    monkeypatch.setattr(processor, "save_pretrained", processor.tokenizer.save_pretrained)  # there are no videos
    start, model = copy.deepcopy(model), copy.deepcopy(model)
    config = full_run(tmp_path, lora_r=2, projector_learning_rate=1e-2, **FAST)
    result = train(model, processor, scene_records(4), StoredSource(), DPO, config)
    inside = {id(p) for p in VLM.of(result.model).decoder.parameters()}
    learned = {name: p for name, p in result.model.named_parameters() if p.requires_grad}
    adapters = [name for name, p in learned.items() if id(p) in inside]
    assert len(adapters) == 2 * 7 * 2 and all("lora_" in name for name in adapters)
    others = learned.keys() - set(adapters)
    assert len(trained_modules(result.model)) == 2
    assert others and all("projector" in name or "merger" in name for name in others)

    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(start), result.folder)
    inputs, ids = encode_record(model, processor, scene_records(1)[0])
    with torch.no_grad():
        first, found, expected = (response_logps(m, [inputs], [ids]).sums for m in (start, loaded, result.model))
    assert torch.equal(found, expected) and not torch.allclose(found, first)
    with result.model.disable_adapter(), torch.no_grad():
        assert torch.equal(response_logps(result.model, [inputs], [ids]).sums, first)


def test_a_model_with_adapters_is_taken_as_it_is(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*language_model.*q_proj"))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    result = train(
        adapted, processor, scene_records(4), StoredSource(), DPO, TrainConfig(tmp_path, **FAST, num_train_epochs=1)
    )
    assert result.model is adapted
    assert [name for name, parameter in adapted.named_parameters() if parameter.requires_grad] == names
    with pytest.raises(ValueError, match="lora_r: needs 0 or the default for a model with adapters of its own, got 2"):
        train(adapted, processor, scene_records(1), StoredSource(), DPO, TrainConfig(tmp_path / "b", lora_r=2))


def test_the_projector_has_a_rate_of_its_own_and_the_tower_is_frozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = fresh_miniature()
    before = {name: value.clone() for name, value in trained(model).items()}
    config = full_run(tmp_path, projector_learning_rate=0.0, **FAST)
    modes: list[tuple[bool, bool]] = []

    def objective(policy: ResponseLogps, reference: Tensor) -> Any:
        modes.append((VLM.of(model).decoder.training, model.model.vision_tower.training))
        return DPO(policy, reference)

    caplog.set_level("INFO", "mmbdhs")
    train(model, processor, scene_records(4), StoredSource(), objective, config)
    frozen = sum(p.numel() for p in model.model.vision_tower.parameters())
    count = sum(p.numel() for p in model.parameters()) - frozen
    assert f"training {count:,} parameters in model.multi_modal_projector, model.language_model" in caplog.text
    assert "no projector" not in caplog.text
    assert modes == [(True, False)]
    changed = {name for name, value in trained(model).items() if not torch.equal(value, before[name])}
    assert changed and not any("vision_tower" in name or "projector" in name for name in changed)
    bare = copy.deepcopy(model)
    bare.model.adapter_of_vision = bare.model.multi_modal_projector
    del bare.model.multi_modal_projector
    with pytest.raises(ValueError, match="projector_learning_rate: needs a module named like projector"):
        train(bare, processor, scene_records(4), StoredSource(), DPO, replace(config, output_dir=tmp_path / "b"))
    make_trainable(bare, full_run(tmp_path))
    assert "no projector is trained: LlavaForConditionalGeneration has no module named like projector" in caplog.text


def test_stored_log_probabilities_replace_a_reference(tmp_path: Path) -> None:
    """All records have them, so that a wrong reference is not used, or some records of a micro-batch have them."""
    model, processor = fresh_miniature()
    records, start, wrong = scene_records(8), copy.deepcopy(model), copy.deepcopy(model)
    torch.nn.init.zeros_(wrong.lm_head.weight)
    train(model, processor, records, StoredSource(), DPO, full_run(tmp_path / "computed", **FAST))
    stored = stored_reference_logps(start, processor, records, start)
    for known, reference in ((8, wrong), (3, None)):
        other = copy.deepcopy(start)
        those = [records[n] | {"reference_logps": stored[n] if n < known else None} for n in range(8)]
        config = full_run(tmp_path / str(known), **FAST)
        train(other, processor, those, StoredSource(), DPO, config, reference=reference)
        assert_near(other, model)


def test_checkpointed_layers_train_the_same(tmp_path: Path) -> None:
    models = []
    for checkpointing in (False, True):
        model, processor = fresh_miniature()
        config = full_run(tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, **FAST)
        train(model, processor, scene_records(4), SupervisedSource(), supervised(), config)
        models.append(model)
    assert_near(*models)
    assert {"rewards/margins", "rewards/accuracies"}.isdisjoint(rows(tmp_path / "True")[0])


@pytest.fixture
def other_precision() -> Any:
    accelerate.state.AcceleratorState._reset_state(True)  # Accelerate keeps one for the whole process
    yield
    accelerate.state.AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("other_precision")
def test_in_half_precision_policy_and_reference_round_alike(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    config = full_run(tmp_path, bf16=True, **FAST)
    train(model, processor, scene_records(8), StoredSource(), DPO, config)
    assert rows(tmp_path)[0]["rewards/margins"] == 0.0 and rows(tmp_path)[1]["rewards/margins"] > 0
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_nan_ends_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    calls: list[int] = []

    def failing(policy: ResponseLogps, reference: Tensor) -> Any:
        calls.append(1)
        result = DPO(policy, reference)
        return result._replace(losses=result.losses / (0 if len(calls) == 3 else 1))

    config = full_run(tmp_path, save_steps=1, **FAST)
    with pytest.raises(NonFiniteLossError, match=r"loss in step 2, of examples 'scene-\d+'.*inf"):
        train(model, processor, scene_records(16), StoredSource(), failing, config)
    newest = tmp_path / "checkpoint-2"
    assert sorted(tmp_path.glob("checkpoint*"))[-1] == newest and not (tmp_path / "final").exists()
    assert_same(AutoModelForImageTextToText.from_pretrained(newest, dtype="float32"), model)


def test_weights_without_a_number_are_noticed_in_the_first_step(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    train(model, processor, scene_records(1), StoredSource(), DPO, full_run(tmp_path / "probed", learning_rate=0.0))
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(NonFiniteLossError, match="log-probabilities in step 0, of examples 'scene-0'"):
        train(model, processor, scene_records(1), StoredSource(), DPO, full_run(tmp_path))


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    model, processor = fresh_miniature()

    class Filling:
        """The processor, which finds the disk full at its second save."""

        saves = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(processor, name)

        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return processor(*arguments, **settings)

        def save_pretrained(self, folder: Path) -> None:
            self.saves += 1
            if self.saves == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            processor.save_pretrained(folder)

    config = full_run(tmp_path, save_steps=1, save_total_limit=1, **FAST)
    with pytest.raises(OSError, match="No space left on device"):
        train(model, Filling(), scene_records(12), StoredSource(), DPO, config)
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == ["checkpoint-1"]
