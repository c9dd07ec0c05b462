"""Sources of responses in `PackedDPOTrainer`: Online-BDHS, Eq. 5, and what a run does with what they find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from helpers.trl_runs import PLAIN, loaded, pairs  # noqa: E402
from peft import LoraConfig  # noqa: E402

from mmbdhs.errors import ExampleError  # noqa: E402
from mmbdhs.logprobs import encode_chat, separate_logps  # noqa: E402
from mmbdhs.losses import averaged_loss, dpo_loss  # noqa: E402
from mmbdhs.sampling import BDHSConfig  # noqa: E402
from mmbdhs.training import Candidates, OnlineBDHSSource, RolloutSource, TrainingExample  # noqa: E402
from mmbdhs.trl import PackedDPOTrainer  # noqa: E402

RATE = 1.0  # so that rounding of the parameters does not hide what they moved


class Recorded:
    """Passes on what an online source finds, records it, and leaves out the examples with some keys."""

    def __init__(self, with_stored: bool = False, without: tuple[str, ...] = ()) -> None:
        config = BDHSConfig(max_iterations=1, seed=3)
        self._source = OnlineBDHSSource(config, lambda one, other: [0.0] * len(one), with_stored)
        self.columns, self._without = self._source.columns, without
        self.found: dict[str, Any] = {}
        self.calls: list[int] = []

    def __call__(self, model: nn.Module, processor: Any, examples: Any) -> list[Any]:
        assert not any(module.training for module in model.get_base_model().modules()) and not torch.is_grad_enabled()
        self.calls.append(len(examples))
        found = self._source(model, processor, examples)
        found = [None if one.key in self._without else pair for one, pair in zip(examples, found, strict=True)]
        self.found |= {one.address: pair for one, pair in zip(examples, found, strict=True)}
        return found


def online_run(source: Any, folder: Path, data: Any, callbacks: Any = None, **settings: Any) -> Any:
    """A trainer whose adapters are away from the reference."""
    model, processor = loaded("miniature")
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    usual = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1} | PLAIN
    config = trl.DPOConfig(str(folder), **usual | settings)
    return PackedDPOTrainer(
        *(model, None, config),
        train_dataset=data,
        processing_class=processor,
        peft_config=adapters,
        callbacks=callbacks,
        source=source,
    )


def online_pairs(*left_out: str) -> Any:
    return pairs("miniature").remove_columns(list(left_out))


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def plain_loss(model: Any, processor: Any, record: Any, found: Candidates) -> Tensor:
    """The mean DPO loss over the pairs of one example, with a row of its own for each response."""
    prompt = record["prompt"][0]["content"]
    one = encode_chat(model, processor, record["images"], prompt, found.responses)
    own = "input_ids", "attention_mask"  # without the BOS token, which TRL leaves to the chat template
    inputs = {name: value[:, 1:] if name in own else value for name, value in one.inputs.items()}
    logps = separate_logps(model, [inputs], [one.ids]).sums[0]
    with torch.no_grad(), model.disable_adapter():
        known = separate_logps(model, [inputs], [one.ids]).sums[0]
    losses = [
        dpo_loss(*(vector[None] for vector in (logps[0], logps[n], known[0], known[n])), beta=0.1)
        for n in range(1, len(logps))
    ]
    return averaged_loss(losses, weights=[1 / len(losses)] * len(losses)).losses[0]


@pytest.mark.parametrize("with_stored", [False, True])
@pytest.mark.parametrize("without", [(), ("scene-1", "scene-2", "scene-6"), ("scene-0", "scene-1", "scene-2")])
def test_a_step_is_that_of_the_plain_loss_over_what_the_source_finds(
    with_stored: bool, without: tuple[str, ...], tmp_path: Path
) -> None:
    """One step of plain gradient descent over all examples. Without scene-0, 1 and 2, and examples in order, there is a
    micro-batch without any."""
    source = Recorded(with_stored, without)
    data = online_pairs() if with_stored else online_pairs("rejected")
    settings = {"gradient_accumulation_steps": 4, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": RATE}
    settings["train_sampling_strategy"] = "sequential"
    run, start = (online_run(one, tmp_path, data, **settings) for one in (source, Recorded(with_stored)))
    run.train()
    assert source.calls == [8]
    assert run.state.log_history[0]["undecided"] == pytest.approx(len(without) / 8)
    losses = [
        plain_loss(start.model, run.processing_class, record, found)
        for record in data
        if (found := source.found[f"{record['key']}#0"]) is not None
    ]
    assert len(losses) == 8 - len(without)
    expected = torch.stack(losses).mean()
    assert run.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    after = adapters_of(run.model)
    for name, value in start.model.named_parameters():
        if value.requires_grad:
            moved = (value.detach() - after[name]) / RATE
            torch.testing.assert_close(moved, value.grad, rtol=1e-3, atol=1e-4 * float(value.grad.abs().max()))


def test_draws_are_those_of_the_library_and_differ_from_epoch_to_epoch(tmp_path: Path) -> None:
    """The key of a draw is the example's, with the epoch: in a stream too, whose length is not known."""
    source, data = Recorded(), online_pairs("rejected").select(range(4))
    online_run(source, tmp_path, data.to_iterable_dataset(), max_steps=3, learning_rate=0.0).train()
    assert set(source.found) == {f"scene-{number}#{epoch}" for number in range(4) for epoch in range(3)}
    twin = online_run(source, tmp_path, data, learning_rate=0.0)
    twin.model.eval()
    examples = [TrainingExample({**row, "prompt": row["prompt"][0]["content"]}, row["key"], 2) for row in data]
    with torch.no_grad():
        expected = Recorded()(twin.model, twin.processing_class, examples)
    assert [source.found[example.address] for example in examples] == expected
    assert any(source.found[f"scene-{n}#0"] != source.found[f"scene-{n}#1"] for n in range(4))


def test_rows_without_a_key_are_addressed_by_their_content(tmp_path: Path) -> None:
    source = Recorded()
    data = online_pairs("rejected", "key")
    online_run(source, tmp_path, data, gradient_accumulation_steps=4).train()
    reversed_source = Recorded()
    online_run(reversed_source, tmp_path, data.select(range(7, -1, -1)), gradient_accumulation_steps=4).train()
    assert len(source.found) == 8 and source.found == reversed_source.found


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """With workers that load data, held-out pairs, and an interruption within the second epoch."""
    ended = []
    for interrupted in (False, True):
        folder = tmp_path / str(interrupted)
        settings = {"max_steps": 5, "dataloader_num_workers": 2}
        if interrupted:
            online_run(
                *(Recorded(True), folder, online_pairs()),
                callbacks=[StopAfter(3)],
                **settings | {"save_strategy": "steps", "save_steps": 3},
            ).train()
        run = online_run(Recorded(True), folder, online_pairs(), **settings)
        run.train(resume_from_checkpoint=True if interrupted else None)
        ended.append((adapters_of(run.model), [row["loss"] for row in run.state.log_history if "loss" in row]))
    (whole, losses), (resumed, its_losses) = ended
    assert losses == its_losses and len(losses) == 5
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class StopAfter(trl.trainer.dpo_trainer.TrainerCallback):
    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._steps


def test_held_out_data_are_stored_pairs(tmp_path: Path) -> None:
    run = online_run(Recorded(), tmp_path, online_pairs("rejected"))
    stored = online_run(None, tmp_path, online_pairs())
    held_out = online_pairs().select(range(3))
    figures = [trainer.evaluate(held_out) for trainer in (run, stored)]
    assert figures[0]["eval_loss"] == figures[1]["eval_loss"] and figures[0]["eval_loss"] != pytest.approx(
        0.6931, abs=1e-3
    )


def test_what_a_source_cannot_do_in_trl_is_refused(tmp_path: Path) -> None:
    data = online_pairs("rejected")
    with pytest.raises(ValueError, match="train_dataset: needs the columns rejected for the source"):
        online_run(Recorded(with_stored=True), tmp_path, data)
    with pytest.raises(ValueError, match="source: needs one that gives pairs in TRL's loss of pairs"):
        online_run(RolloutSource(lambda rollouts: []), tmp_path, data)
    with pytest.raises(ValueError, match="precompute_ref_log_probs: needs False where a source finds"):
        online_run(Recorded(), tmp_path, data, precompute_ref_log_probs=True)
    texts = data.map(lambda row: {"prompt": row["prompt"][0]["content"]}, remove_columns="prompt")
    with pytest.raises(ValueError, match="prompt: needs a list of messages where a source"):
        online_run(Recorded(), tmp_path, texts).train()
    for found, error, message in (
        (ExampleError("no image"), ExampleError, "train_dataset: example 'scene-[0-9]': no image"),
        (Candidates(("One.",)), ValueError, "source: needs two responses or more"),
    ):
        source = lambda model, processor, examples, found=found: [found] * len(examples)  # noqa: E731
        with pytest.raises(error, match=message):
            online_run(source, tmp_path, data).train()

    def uneven(model: nn.Module, processor: Any, examples: Any) -> list[Any]:
        return [Candidates(("One.", "Two.", "Three.")[: 2 + n % 2]) for n in range(len(examples))]

    with pytest.raises(ValueError, match="source: needs equally many responses for each example of a batch, got"):
        online_run(uneven, tmp_path, data).train()


def shared_run(folder: Path, batches: int) -> None:
    """Two optimiser steps over four examples each, where two examples have no candidates."""
    source = Recorded(with_stored=True, without=("scene-0", "scene-5"))
    settings = {"gradient_accumulation_steps": batches, "max_steps": 2, "train_sampling_strategy": "sequential"}
    run = online_run(source, folder, online_pairs(), **settings)
    run.train()
    if run.is_world_process_zero():
        torch.save((adapters_of(run.model), run.state.log_history), folder / "ended.pt")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        tests = Path(__file__).parents[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
        # Without the timeout, processes that wait for each other in vain would do so for half an hour.
        command = [*launcher, __file__, str(folder), str(2 // processes)]
        subprocess.run(command, check=True, env=environment, timeout=300)
    (one, log), (two, its_log) = (torch.load(tmp_path / name / "ended.pt", weights_only=False) for name in "12")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    for row, its_row in zip(log[:2], its_log[:2], strict=True):
        for name in ("loss", "grad_norm", "undecided"):
            assert its_row[name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), name
    assert log[0]["undecided"] == 0.25


if __name__ == "__main__":
    shared_run(Path(sys.argv[1]), int(sys.argv[2]))
