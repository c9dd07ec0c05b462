"""Dense DPO of RLHF-V: by hand, against what its authors computed, and against a plain loop of whole forwards."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from math import exp, log1p
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, full_run, scene_records
from helpers.whole_forwards import assert_equal_gradients, gradients, log_probabilities, perturbed
from torch import Tensor

from mmbdhs import train
from mmbdhs.logprobs import ResponseLogps, encode_record
from mmbdhs.losses import PreferenceLoss, dpo_loss, ipo_loss, simpo_loss
from mmbdhs.training import DistortedSource, StoredSource, TrainConfig, TrainingExample, pairwise
from mmbdhs.training.command_parts import check_fit, parse_objective
from mmbdhs.training.learner import Learner
from mmbdhs.training.objectives import changed_tokens, losses_of
from mmbdhs.training.sharding import ReplicatedModel

# One example, three responses of 2, 1 and 4 tokens. The second response lacks the 8 of the chosen one, the third its 7.
IDS = [[[7, 8], [7], [9, 8, 9, 9]]]
MASK = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.bool)
POLICY = ResponseLogps(torch.tensor([[[-1.0, -1, 0, 0], [-3, 0, 0, 0], [-2, -2, -2, -2]]]), MASK)
REFERENCE = ResponseLogps(torch.tensor([[[-2.0, -2, 0, 0], [-3, 0, 0, 0], [-1, -2, -1, -2]]]), MASK)


def test_changed_tokens_weigh_more_in_each_pair() -> None:
    """With γ = 3, log π is −1 − 3 · 1 = −4 of the chosen response, −3 and −3 · (2 + 2 + 2) − 2 = −20 of the others;
    log π_ref is −8, −3 and −3 · (1 + 1 + 2) − 2 = −14. DPO's margins at β = 0.5 are 2 and 2 + 3."""
    result = pairwise(dpo_loss, beta=0.5, changed_weight=3)(POLICY, REFERENCE, IDS)
    assert result.losses.tolist() == pytest.approx([(log1p(exp(-2)) + log1p(exp(-5))) / 2])
    assert result.chosen_rewards.tolist() == [2.0] and result.rejected_rewards.tolist() == [-1.5]


def test_per_token_divides_by_the_sum_of_weights() -> None:
    """N is 1 + 3 for the chosen response, 1 and 1 + 3 · 3 for the others; the log-ratios are 4/4, 0 and −6/10."""
    dense = {"per_token": True, "changed_weight": 3}
    dpo = pairwise(dpo_loss, beta=0.5, **dense)(POLICY, REFERENCE, IDS)
    assert dpo.losses.tolist() == pytest.approx([(log1p(exp(-0.5)) + log1p(exp(-0.8))) / 2])
    ipo = pairwise(ipo_loss, beta=0.5, **dense)(POLICY, REFERENCE, IDS)
    assert ipo.losses.tolist() == pytest.approx([(0.0**2 + 0.6**2) / 2])
    simpo = pairwise(simpo_loss, beta=1.0, gamma=0.0, changed_weight=3)(POLICY, None, IDS)
    assert simpo.losses.tolist() == pytest.approx([(log1p(exp(-2)) + log1p(exp(-1))) / 2])  # −4/4, −3 and −20/10


def test_a_weight_of_one_is_the_plain_loss_and_the_likelihood_has_no_weights() -> None:
    settings = {"beta": 0.5, "sft_weight": 0.5}
    plain = pairwise(dpo_loss, **settings)(POLICY, REFERENCE.sums)
    assert torch.equal(pairwise(dpo_loss, **settings, changed_weight=1.0)(POLICY, REFERENCE, IDS).losses, plain.losses)
    with_sft, without = (
        pairwise(dpo_loss, changed_weight=3, sft_weight=weight)(POLICY, REFERENCE, IDS).losses for weight in (0.5, 0)
    )
    assert (with_sft - without).tolist() == pytest.approx([0.5])


def test_agrees_with_what_the_authors_computed() -> None:
    """github.com/RLHF-V/RLAIF-V at 2848e18, compute_weighted_logp in muffin/train/trainers.py, with a weight of 5; both
    the mean and the sum. The third token of the second response does not count."""
    tokens = torch.tensor([[-1.2, -0.4, -2.5, -0.9, -3.0], [-0.3, -1.9, -1.0, -0.7, -1.1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]).bool()
    policy = ResponseLogps(tokens.masked_fill(~mask, 0.0)[:, None].repeat(1, 2, 1), mask[:, None].repeat(1, 2, 1))
    ids = [[[0, 1, 2, 3], [0, 8, 9, 3]], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 9]]]

    def chosen_logps(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor) -> PreferenceLoss:
        return PreferenceLoss(policy_chosen_logps, policy_chosen_logps, policy_rejected_logps)

    mean, total = (
        pairwise(chosen_logps, changed_weight=5.0, per_token=per_token)(policy, None, ids).losses
        for per_token in (True, False)
    )
    assert mean.tolist() == pytest.approx([-1.38333333, -1.05])
    assert total.tolist() == pytest.approx([-16.6, -8.4])


def test_tokens_that_both_responses_share_have_not_changed() -> None:
    first, second = changed_tokens([1, 2, 3, 4, 5], [1, 2, 9, 4, 5, 6])
    assert first == [False, False, True, False, False]
    assert second == [False, False, True, False, False, True]
    assert changed_tokens([], [3]) == ([], [True])
    often = [1, 2] * 150  # difflib's heuristic for long texts would take frequent tokens for changed
    assert changed_tokens([3, *often], [4, *often]) == ([True, *[False] * 300], [True, *[False] * 300])


def test_wrong_use_is_named() -> None:
    dense = pairwise(dpo_loss, changed_weight=5)
    with pytest.raises(ValueError, match="changed_weight: needs a finite number above 0, got 0"):
        pairwise(dpo_loss, changed_weight=0)
    with pytest.raises(ValueError, match=r"changed_weight: needs the token ids of all 3 responses .*, got None"):
        dense(POLICY, REFERENCE)
    with pytest.raises(ValueError, match=r"predictions over distorted images have none\), got \[2\]"):
        dense(POLICY, REFERENCE, [IDS[0][:2]])
    with pytest.raises(TypeError, match="reference: needs ResponseLogps for changed_weight, got Tensor"):
        dense(POLICY, REFERENCE.sums, IDS)


def test_other_objectives_get_sums_and_no_ids() -> None:
    def objective(policy: ResponseLogps, reference: Tensor) -> PreferenceLoss:
        return dpo_loss(*policy.sums.T[:2], *reference.T[:2])

    found = losses_of(objective, POLICY, REFERENCE, IDS)
    assert torch.equal(found.losses, losses_of(objective, POLICY, REFERENCE.sums, IDS).losses)


BETA, GAMMA = 0.1, 5.0
REPLACED = [("red car", "green dog"), ("a bird", "the flower"), ("a blue lamp", "no chair")]
EXAMPLES = [
    TrainingExample({**record, "chosen": text.format(old), "rejected": text.format(new)}, record["key"], epoch=0)
    for record, (old, new) in zip(scene_records(3), REPLACED, strict=True)
    for text in ["The image shows a hallway. There is {} in it. The sky is grey."]
]


def rule(policy: Any, reference: Any, processor: Any, example: TrainingExample) -> Tensor:
    """The responses share their first and their last tokens; those between have changed."""
    inputs, pair = encode_record(policy, processor, example.record)
    first = next(i for i, (one, other) in enumerate(zip(*pair, strict=False)) if one != other)
    last = next(i for i, (one, other) in enumerate(zip(*map(reversed, pair), strict=False)) if one != other)
    assert first > 5 and last > 3 and not set.intersection(*(set(ids[first : len(ids) - last]) for ids in pair))

    def logp(model: Any, ids: list[int]) -> Tensor:
        tokens = log_probabilities(model, inputs, ids)[torch.arange(len(ids)), torch.tensor(ids)]
        return tokens.sum() + (GAMMA - 1) * tokens[first : len(ids) - last].sum()

    ours = [logp(policy, ids)[None] for ids in pair]
    with torch.no_grad():
        theirs = [logp(reference, ids)[None] for ids in pair]
    return -torch.nn.functional.logsigmoid(BETA * (ours[0] - theirs[0] - ours[1] + theirs[1]))


def learner(policy: Any, processor: Any, reference: Any, output: Path) -> Learner:
    return Learner(
        policy=ReplicatedModel(policy),
        processor=processor,
        source=StoredSource(),
        objective=pairwise(dpo_loss, beta=BETA, changed_weight=GAMMA),
        reference=ReplicatedModel(reference),
        config=TrainConfig(output),
        autocast=nullcontext,
        backward=lambda loss: loss.backward(),
    )


def test_loss_and_gradients_are_those_of_the_rule(tmp_path: Path) -> None:
    """Also where records have sums of the reference, which cannot be weighted."""
    model, processor = fresh_miniature()
    policy, reference = perturbed(model, 1).train(), perturbed(fresh_miniature()[0], 2).eval()
    plain = copy.deepcopy(policy).eval()
    losses = torch.cat([rule(plain, reference, processor, example) for example in EXAMPLES])
    losses.sum().backward()
    stored = [replace(one, record={**one.record, "reference_logps": [-1.0, -2.0]}) for one in EXAMPLES]
    sums = learner(policy, processor, reference, tmp_path).accumulate_gradients(0, stored)
    assert float(sums[1]) == pytest.approx(float(losses.detach().sum()), rel=1e-5)
    assert_equal_gradients(gradients(policy), gradients(plain))


def test_a_run_with_stored_sums_makes_a_reference(tmp_path: Path) -> None:
    """Its first step therefore starts at a margin of 0."""
    records = [{**one.record, "reference_logps": [-1.0, -2.0]} for one in EXAMPLES]
    config = full_run(tmp_path, learning_rate=1e-3, per_device_train_batch_size=3)
    train(*fresh_miniature(), records, StoredSource(), pairwise(dpo_loss, changed_weight=GAMMA), config)
    assert '"loss": 0.6931' in (tmp_path / "log.jsonl").read_text()


def test_predictions_over_distorted_images_are_refused(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    both = replace(learner(model, processor, copy.deepcopy(model), tmp_path), source=DistortedSource())
    with pytest.raises(ValueError, match="changed_weight: needs the token ids of all 3 responses"):
        both.accumulate_gradients(0, EXAMPLES)


def test_the_shell_takes_it_as_a_setting() -> None:
    objective = parse_objective(["dpo", "beta=0.5", "changed_weight=3"])
    assert objective == pairwise(dpo_loss, beta=0.5, changed_weight=3)
    check_fit(StoredSource(), objective)
    with pytest.raises(ValueError, match="changed_weight: needs the token ids of all 3 responses"):
        check_fit(DistortedSource(), objective)
