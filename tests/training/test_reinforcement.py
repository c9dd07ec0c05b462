"""RLOO against TRL's trainer, PPO against a plain implementation and cases worked out by hand, and how a run ends."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records
from torch import Tensor

from mmbdhs.data.jsonl import read_jsonl
from mmbdhs.logprobs.preferences import encode_chat
from mmbdhs.logprobs.responses import ResponseLogps
from mmbdhs.losses import whiten
from mmbdhs.runs import FolderInUseError
from mmbdhs.sampling.config import SamplingConfig
from mmbdhs.training.batches import unread_example
from mmbdhs.training.learner import KLBoundError, NonFiniteLossError
from mmbdhs.training.objectives import Rewards
from mmbdhs.training.pair_sources import Candidates, RewardError, TrainingExample
from mmbdhs.training.reinforcement import PPOTargets, RolloutScores, ppo, rloo
from mmbdhs.training.rollouts import Rollout, RolloutSource
from mmbdhs.training.trainer import train

pytest.importorskip("accelerate")

SHORT = SamplingConfig(max_new_tokens=8)
TEXTS = ("There is a red car.", "There is a dog.", "A green bed and a blue key are in the image.", "No.")
STEADY = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1}


def lengths(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """A reward that has nothing to do with the image."""
    return [[0.1 * len(text) for text in one.responses] for one in rollouts]


def own_rewards(key: Any) -> list[float]:
    """Some rewards of the four texts, other ones for each example."""
    number = int(str(key).rpartition("-")[2])
    return [math.sin(number + 3.0 * response) for response in range(len(TEXTS))]


class FixedRollouts:
    """The same four responses to each prompt, as tokens."""

    gives_rewards = True

    def __call__(self, model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates]:
        found = []
        for example in examples:
            one = encode_chat(model, processor, example.record["images"], example.record["prompt"], TEXTS)
            rewards = tuple(own_rewards(example.key))
            found.append(Candidates(TEXTS, rewards=rewards, response_ids=tuple(one.ids)))
        return found


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rloo_takes_the_steps_of_trl(beta: float, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    records = scene_records(4)
    (model, processor), peer, start = fresh_miniature(), fresh_miniature()[0], fresh_miniature()[0].state_dict()
    config = full_run(tmp_path / "ours", num_train_epochs=3, per_device_train_batch_size=4, **STEADY)
    train(model, processor, records, FixedRollouts(), rloo(beta=beta), config)
    peer.model.vision_tower.requires_grad_(False)
    theirs = with_trl(trl, peer, processor, records, beta, tmp_path / "theirs")
    ours = read_jsonl(tmp_path / "ours/log.jsonl")
    for name in ("reward", "grad_norm"):
        assert [row[name] for row in ours] == pytest.approx([float(row[name]) for row in theirs], rel=1e-3)
    assert apart(model.state_dict(), peer.state_dict(), start) < 2e-3


def with_trl(trl: Any, model: Any, processor: Any, records: list, beta: float, folder: Path) -> list[dict[str, float]]:
    """Train with TRL's RLOOTrainer on the fixed responses in place of its own."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"images": record["images"], "prompt": [{"role": "user", "content": record["prompt"]}], "key": record["key"]}
        for record in records
    ]
    settings = trl.RLOOConfig(
        str(folder),
        per_device_train_batch_size=16,
        num_generations=4,
        num_train_epochs=3,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        beta=beta,
        temperature=1.0,
        max_completion_length=64,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    )

    def rewards(completions: list, key: list, **_: Any) -> list[float]:
        return [own_rewards(one)[number % 4] for number, one in enumerate(key)]

    kinds = {"train_dataset": datasets.Dataset.from_list(rows), "processing_class": copy.deepcopy(processor)}
    trainer = trl.RLOOTrainer(model, rewards, settings, **kinds)
    if beta:
        trainer.ref_model = copy.deepcopy(model).requires_grad_(False).eval()
    one = encode_chat(model, processor, records[0]["images"], records[0]["prompt"], TEXTS)
    prompt = one.inputs["input_ids"][0].tolist()  # is the same for all records

    def generate(prompts: list[Any]) -> tuple[list, list, list]:
        texts = [[{"role": "assistant", "content": TEXTS[number % 4]}] for number in range(len(prompts))]
        return [prompt] * len(prompts), [one.ids[number % 4] for number in range(len(prompts))], texts

    trainer._generate = generate
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def test_ppo_fixes_what_was_worked_out_by_hand() -> None:
    """Two responses, of two tokens and of one: γ = 1, λ = ½, β = 0.1."""
    mask = torch.tensor([[[True, True], [True, False]]])
    old, reference = torch.tensor([[[-1.0, -2.0], [-0.5, 0.0]]]), torch.tensor([[[-1.5, -1.0], [-0.5, 0.0]]])
    values, rewards = torch.tensor([[[0.2, 0.4], [0.3, 9.0]]]), torch.tensor([[1.0, -1.0]])
    scores = RolloutScores(ResponseLogps(old, mask), torch.zeros(1, 2, 2), values)
    found = ppo(beta=0.1, lam=0.5).targets(scores, ResponseLogps(reference, mask), Rewards(3 * rewards, rewards))
    # token rewards -0.05 | 0.1 + 1 and -1; δ = 0.15 | 0.7 and -1.3
    assert found.advantages.flatten().tolist() == pytest.approx([0.5, 0.7, -1.3, 0.0])
    assert found.returns.flatten().tolist() == pytest.approx([0.7, 1.1, -1.0, 0.0])
    assert found.kl.flatten().tolist() == pytest.approx([-0.5, 0.0])
    assert found.rewards.tolist() == [[3.0, -3.0]]


def test_advantages_are_whitened_over_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = []
    for shape in ((3, 2, 5), (1, 2, 7), (2, 4, 1)):
        mask = torch.rand(shape, generator=generator) < 0.7
        mask[..., 0] = True
        advantages = torch.randn(shape, generator=generator) * mask
        groups.append(PPOTargets(advantages, advantages, advantages, advantages, mask, mask, mask))
    found = ppo().over_batch(groups, lambda sums: sums)
    together = torch.cat([one.advantages[one.mask] for one in groups])[None]
    expected = whiten(together, torch.ones_like(together, dtype=torch.bool))[0]
    torch.testing.assert_close(torch.cat([one.advantages[one.mask] for one in found]), expected)
    assert all(not one.advantages[~one.mask].any() for one in found)


@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_ppo_takes_the_steps_of_a_plain_loop(weight: float, tmp_path: Path) -> None:
    """Rows of their own, GAE by its recursion, both losses written out, two steps for each of two batches."""
    (model, processor), (plain, _) = fresh_miniature(), fresh_miniature()
    records, start = scene_records(3), {name: value.clone() for name, value in plain.state_dict().items()}
    config = full_run(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, **STEADY
    )
    objective = ppo(beta=0.2, clip_range=0.1, value_clip_range=0.005, value_weight=weight, lam=0.9, num_ppo_epochs=2)
    train(model, processor, records, FixedRollouts(), objective, config)
    norms = plain_ppo(plain, processor, records, weight)
    assert [row["grad_norm"] for row in read_jsonl(tmp_path / "log.jsonl")] == pytest.approx(norms, rel=2e-3)
    trained = dict(model.state_dict())
    head = trained.pop("value_head.weight")
    assert apart(trained, plain_state(plain), start) < 2e-3
    torch.testing.assert_close(head, plain.value_head.weight.data, rtol=0, atol=2e-5)


def plain_state(plain: Any) -> dict[str, Tensor]:
    return {name: value for name, value in plain.state_dict().items() if name != "value_head.weight"}


def plain_ppo(plain: Any, processor: Any, records: list, weight: float) -> list[float]:
    plain.model.vision_tower.requires_grad_(False)
    reference = copy.deepcopy(plain)
    plain.add_module("value_head", torch.nn.Linear(plain.lm_head.weight.shape[1], 1, bias=False))
    torch.nn.init.zeros_(plain.value_head.weight)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0)
    rows = [(record, response) for record in records for response in range(4)]
    norms = []
    for _ in range(2):
        with torch.no_grad():
            old, values, known = (
                [list(column) for column in zip(*(plain_row(one, processor, *row) for row in rows), strict=True)][kind]
                for one, kind in ((plain, 0), (plain, 1), (reference, 0))
            )
        advantages, returns = zip(*map(plain_gae, rows, old, values, known), strict=True)
        tokens = torch.cat(advantages)
        mean, std = tokens.mean(), (tokens.var() + 1e-8).sqrt()
        fixed = list(zip(old, values, [(one - mean) / std for one in advantages], returns, strict=True))
        for _ in range(2):
            optimizer.zero_grad()
            for begin in range(0, len(rows), 4):
                own = slice(begin, begin + 4)
                plain_prompt_loss(plain, processor, rows[own], fixed[own], weight).backward()
            for parameter in parameters:
                parameter.grad /= len(records)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        norms.append(float(norm))
    return norms


def plain_row(model: Any, processor: Any, record: dict, response: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values of the tokens of one response."""
    one = encode_chat(model, processor, record["images"], record["prompt"], TEXTS)
    prompt, ids = one.inputs["input_ids"], torch.tensor(one.ids[response])
    row = {**one.inputs, "input_ids": torch.cat([prompt, ids[None]], dim=1)}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    output = model(**row, use_cache=False, output_hidden_states=True)
    places = slice(prompt.shape[1] - 1, -1)
    logps = output.logits[0, places].log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    hidden = output.hidden_states[-1][0, places]
    return logps, model.value_head(hidden)[:, 0] if hasattr(model, "value_head") else hidden[:, 0]


def plain_gae(row: tuple, old: Tensor, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    record, response = row
    rewards = -0.2 * (old - known)
    rewards[-1] += own_rewards(record["key"])[response]
    advantages, following = [], 0.0
    for step in reversed(range(len(old))):
        after = values[step + 1] if step + 1 < len(old) else 0.0
        following = rewards[step] + after - values[step] + 0.9 * following
        advantages.insert(0, following)
    found = torch.stack(advantages)
    return found, found + values


def plain_prompt_loss(plain: Any, processor: Any, rows: list, fixed: list, weight: float) -> Tensor:
    """The mean over the tokens of a prompt's four responses."""
    losses = []
    for row, (old, old_values, advantages, returns) in zip(rows, fixed, strict=True):
        logps, values = plain_row(plain, processor, *row)
        ratio = (logps - old).exp()
        policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.9, 1.1))
        near = old_values + (values - old_values).clamp(-0.005, 0.005)
        error = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        losses.append(policy + weight * 0.5 * error)
    return torch.cat(losses).mean()


def test_an_example_without_responses_counts_once(tmp_path: Path) -> None:
    class Undecided(FixedRollouts):
        def __call__(self, model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Any]:
            found = super().__call__(model, processor, examples)
            return [None if one.key == "scene-1" else own for one, own in zip(examples, found, strict=True)]

    config = full_run(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    train(*fresh_miniature(), scene_records(3), Undecided(), ppo(num_ppo_epochs=3), config)
    (row,) = read_jsonl(tmp_path / "log.jsonl")
    assert row["undecided"] == 1 and row["reward"] == pytest.approx(sum(own_rewards(0) + own_rewards(2)) / 8)


def test_rloo_raises_the_reward(tmp_path: Path) -> None:
    """Twelve steps for more letters."""
    source = RolloutSource(lengths, sampling=SHORT)
    config = full_run(tmp_path, num_train_epochs=12, per_device_train_batch_size=4, **STEADY | {"learning_rate": 3e-4})
    train(*fresh_miniature(), scene_records(4), source, rloo(beta=0.0), config)
    rewards = [row["reward"] for row in read_jsonl(tmp_path / "log.jsonl")]
    assert sum(rewards[-3:]) > sum(rewards[:3])


@pytest.mark.parametrize("objective", [rloo(beta=0.05), ppo(num_ppo_epochs=2)], ids=["rloo", "ppo"])
@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(objective: Any, lora_r: int, tmp_path: Path) -> None:
    def run(folder: Path, stop: bool = False, scale: float = 1.0, **settings: Any) -> Any:
        def reward(rollouts: Sequence[Rollout]) -> list[list[float]]:
            return [[scale * value for value in values] for values in lengths(rollouts)]

        def evaluate(model: Any, step: int) -> dict[str, float]:
            if stop and step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        changed = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "eval_steps": 1, "lora_r": lora_r}
        config = full_run(folder, **STEADY | changed | settings)
        source = RolloutSource(reward, sampling=SHORT)
        return train(*fresh_miniature(), scene_records(6), source, objective, config, evaluate=evaluate)

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "cut", stop=True).interrupted
    state = torch.load(tmp_path / "cut/checkpoint-2/trainer.pt", weights_only=True)
    assert state["source"].keys() == {"mean", "std"}
    cut = run(tmp_path / "cut", resume_from_checkpoint=True)
    first, second = (dict(one.model.named_parameters()) for one in (whole, cut))
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    logs = [read_jsonl(tmp_path / name / "log.jsonl")[-1] for name in ("whole", "cut")]
    assert logs[0].pop("tokens_per_second", 1) and logs[1].pop("tokens_per_second", 1) and logs[0] == logs[1]


@pytest.mark.parametrize("objective", [rloo(), ppo()], ids=["rloo", "ppo"])
def test_held_out_prompts_are_rewarded_too(objective: Any, tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    source = RolloutSource(lengths, sampling=SHORT)
    config = full_run(tmp_path, learning_rate=0.0)
    train(model, processor, scene_records(3), source, objective, config, eval_records=scene_records(5)[3:])
    (row,) = (row for row in read_jsonl(tmp_path / "log.jsonl") if "eval_reward" in row)
    found = source(model, processor, [unread_example(scene_records(5), number).read() for number in (3, 4)])
    raw = [value for one in found for value in one.raw_rewards]
    assert row["eval_reward"] == pytest.approx(sum(raw) / len(raw)) and row["eval_kl"] == pytest.approx(0, abs=1e-5)


def test_micro_batches_do_not_change_a_step_of_ppo(tmp_path: Path) -> None:
    models = []
    for size, passes in ((1, 4), (4, 1)):
        model, processor = fresh_miniature()
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        source = RolloutSource(lengths, sampling=SamplingConfig(max_new_tokens=12))
        train(model, processor, scene_records(4), source, ppo(), full_run(tmp_path / str(size), **STEADY | sizes))
        models.append(dict(model.state_dict()))
    start = dict(fresh_miniature()[0].state_dict()) | {"value_head.weight": 0 * models[0]["value_head.weight"]}
    assert apart(models[0], models[1], start) < 5e-3


def test_a_resumed_run_takes_the_statistics_from_its_checkpoint(tmp_path: Path) -> None:
    calls = []

    def reward(rollouts: Sequence[Rollout]) -> list[list[float]]:
        calls.append(len(rollouts[0].responses))
        return lengths(rollouts)

    for resume in (False, True):
        config = full_run(tmp_path, save_steps=1, max_steps=1 + resume, resume_from_checkpoint=resume)
        train(*fresh_miniature(), scene_records(2), RolloutSource(reward, sampling=SHORT), rloo(), config)
    assert calls == [2, 4, 4]  # stored pairs once, then four responses in each step


def test_another_number_of_responses_does_not_resume(tmp_path: Path) -> None:
    for number, resume in ((2, False), (3, True)):
        config = full_run(tmp_path, save_steps=1, max_steps=1 + resume, resume_from_checkpoint=resume)
        source = RolloutSource(lengths, num_generations=number, sampling=SHORT)
        if not resume:
            train(*fresh_miniature(), scene_records(2), source, rloo(), config)
            continue
        with pytest.raises(FolderInUseError, match=r"source\.num_generations: 2, now 3"):
            train(*fresh_miniature(), scene_records(2), source, rloo(), config)


def test_a_policy_far_from_its_reference_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = full_run(tmp_path, num_train_epochs=9, **STEADY | {"learning_rate": 1e-2})
    source = RolloutSource(lengths, sampling=SHORT)
    with pytest.raises(KLBoundError, match=r"step \d: needs at most max_kl=0.5 nats per response, got \d"):
        train(*fresh_miniature(), scene_records(2), source, rloo(max_kl=0.5), config)
    last = len(read_jsonl(tmp_path / "log.jsonl"))
    assert last and torch.load(tmp_path / f"checkpoint-{last}/trainer.pt", weights_only=True)["step"] == last


@pytest.mark.parametrize("wrong", [[math.nan] * 4, [1.0, 2.0]], ids=["NaN", "two for four"])
def test_rewards_that_cannot_be_learned_from_end_the_run_with_a_checkpoint(wrong: list, tmp_path: Path) -> None:
    calls = []

    def reward(rollouts: Sequence[Rollout]) -> list[list[float]]:
        calls.append(1)
        return [wrong] * len(rollouts) if len(calls) == 4 else lengths(rollouts)  # the first are stored responses

    config = full_run(tmp_path, num_train_epochs=9)
    message = r"reward: needs 4 finite numbers for example 'scene-\d', got \("
    with pytest.raises(RewardError, match=message):
        train(*fresh_miniature(), scene_records(2), RolloutSource(reward, sampling=SHORT), rloo(), config)
    assert (tmp_path / "checkpoint-2").is_dir() and not (tmp_path / "final").exists()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    train(model, processor, scene_records(1), FixedRollouts(), rloo(), full_run(tmp_path / "probed", learning_rate=0.0))
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(NonFiniteLossError, match="scores in step 0, of examples 'scene-0'"):
        train(model, processor, scene_records(1), FixedRollouts(), rloo(), full_run(tmp_path / "bad"))
