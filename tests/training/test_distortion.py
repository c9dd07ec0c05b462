"""The losses of POVID and mDPO against plain loops written from their rules: whole forwards, one example after another.

POVID: the arg-max tokens of a forward over the noisy image are scored where they were predicted, with the clean image
and the chosen tokens before them; policy and reference each score their own. mDPO: the chosen response is scored over
the noisy image.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, scene_records
from helpers.whole_forwards import assert_equal_gradients, gradients, log_probabilities, perturbed
from torch import Tensor

from mmbdhs.data import key_address
from mmbdhs.logprobs import encode_chat, encode_record, predicted_ids, response_logps
from mmbdhs.losses import averaged_loss, dpo_loss, mdpo_loss
from mmbdhs.sampling import Noise
from mmbdhs.training import (
    Candidates,
    DistortedSource,
    MixedSource,
    StoredSource,
    SupervisedSource,
    TrainConfig,
    TrainingExample,
    pairwise,
)
from mmbdhs.training.command_parts import check_fit, parse_objective
from mmbdhs.training.learner import Learner
from mmbdhs.training.sharding import ReplicatedModel

peft = pytest.importorskip("peft")

BETA, STEPS, SEED, ANCHOR = 0.1, 500, 3, 0.25
MDPO = pairwise(mdpo_loss, beta=BETA, anchor=ANCHOR)
EXAMPLES = [TrainingExample(record, record["key"], epoch=2) for record in scene_records(3)]


def rule(policy: Any, reference: Any, processor: Any, example: TrainingExample, with_stored: bool) -> Tensor:
    record = example.record
    inputs, (chosen, rejected) = encode_record(policy, processor, record)
    images = Noise(STEPS, "clip", SEED, key_address(example.address), 1).of_images(record["images"])
    noisy = encode_chat(policy, processor, images, record["prompt"], [record["chosen"]]).inputs
    places = torch.arange(len(chosen))

    def scores(model: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            predicted = log_probabilities(model, noisy, chosen).argmax(-1)
        assert (predicted != torch.tensor(chosen)).any()
        clean = log_probabilities(model, inputs, chosen)
        others = log_probabilities(model, inputs, rejected)[torch.arange(len(rejected)), torch.tensor(rejected)]
        return clean[places, torch.tensor(chosen)].sum(), others.sum(), clean[places, predicted].sum()

    ours = [score[None] for score in scores(policy)]
    with torch.no_grad():
        theirs = [score[None] for score in scores(reference)]
    distorted = dpo_loss(ours[0], ours[2], theirs[0], theirs[2], beta=BETA)
    if not with_stored:
        return distorted.losses
    stored = dpo_loss(ours[0], ours[1], theirs[0], theirs[1], beta=BETA)
    return averaged_loss([stored, distorted], weights=(0.25, 0.75)).losses  # Eq. 5


def mdpo_rule(policy: Any, reference: Any, processor: Any, example: TrainingExample) -> Tensor:
    """−log σ(r₊ − r₋) − log σ(r₊ − r̃₊) − log σ(r₊ − δ) with r = β log π/π_ref and δ = ANCHOR."""
    record = example.record
    clean, (chosen, rejected) = encode_record(policy, processor, record)
    images = Noise(STEPS, "clip", SEED, key_address(example.address), 1).of_images(record["images"])
    noisy = encode_chat(policy, processor, images, record["prompt"], [record["chosen"]]).inputs

    def logp(model: Any, inputs: dict[str, Any], ids: list[int]) -> Tensor:
        return log_probabilities(model, inputs, ids)[torch.arange(len(ids)), torch.tensor(ids)].sum()

    def reward(inputs: dict[str, Any], ids: list[int]) -> Tensor:
        with torch.no_grad():
            subtracted = logp(reference, inputs, ids)
        return BETA * (logp(policy, inputs, ids) - subtracted)

    better, worse, blurred = reward(clean, chosen), reward(clean, rejected), reward(noisy, chosen)
    assert abs(float((better - blurred).detach())) > 0.01
    margins = torch.stack([better - worse, better - blurred, better - ANCHOR])
    return torch.nn.functional.softplus(-margins).sum()[None]


def learner(policy: Any, processor: Any, reference: Any, with_stored: bool, tmp_path: Path) -> Learner:
    weights = (0.25, 0.75) if with_stored else None
    return Learner(
        policy=ReplicatedModel(policy),
        processor=processor,
        source=DistortedSource(STEPS, SEED, with_stored),
        objective=pairwise(dpo_loss, weights=weights, beta=BETA),
        reference=None if reference is None else ReplicatedModel(reference),
        config=TrainConfig(tmp_path),
        autocast=nullcontext,
        backward=lambda loss: loss.backward(),
    )


@pytest.mark.parametrize("with_stored", [False, True])
def test_loss_and_gradients_are_those_of_the_rule(with_stored: bool, tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    policy, reference = perturbed(model, 1).train(), perturbed(fresh_miniature()[0], 2).eval()
    plain = copy.deepcopy(policy).eval()
    losses = [rule(plain, reference, processor, example, with_stored) for example in EXAMPLES]
    torch.cat(losses).sum().backward()
    sums = learner(policy, processor, reference, with_stored, tmp_path).accumulate_gradients(0, EXAMPLES)
    assert float(sums[1]) == pytest.approx(float(torch.cat(losses).sum()), rel=1e-5)
    assert_equal_gradients(gradients(policy), gradients(plain))


def test_the_reference_of_adapters_is_the_model_without_them(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    reference = perturbed(model, 1)
    config = peft.LoraConfig(target_modules=["down_proj", "q_proj"], init_lora_weights=False, lora_alpha=32)
    policy = peft.get_peft_model(copy.deepcopy(reference), config)
    plain = copy.deepcopy(policy)
    losses = [rule(plain, reference, processor, example, with_stored=False) for example in EXAMPLES]
    torch.cat(losses).sum().backward()
    sums = learner(policy.train(), processor, None, False, tmp_path).accumulate_gradients(0, EXAMPLES)
    assert float(sums[1]) == pytest.approx(float(torch.cat(losses).sum()), rel=1e-5)
    assert_equal_gradients(gradients(policy), gradients(plain))


def test_stored_log_probabilities_are_no_hindrance(tmp_path: Path) -> None:
    """They know nothing of the predictions, so the reference is computed."""
    model, processor = fresh_miniature()
    reference = perturbed(fresh_miniature()[0], 2).eval()
    records = [replace(one, record={**one.record, "reference_logps": [-1.0, -2.0]}) for one in EXAMPLES]
    found = [
        learner(model, processor, reference, True, tmp_path).accumulate_gradients(0, examples)[1]
        for examples in (EXAMPLES, records)
    ]
    assert torch.equal(*found)


def test_predictions_that_agree_cancel() -> None:
    """Over the clean image, with the reference's predictions for both, every margin of an untrained policy is 0; and
    targets equal to the chosen response are scored as it is."""
    model, processor = fresh_miniature()
    inputs, (chosen, rejected) = encode_record(model, processor, EXAMPLES[0].record)
    with torch.no_grad():
        (predicted,) = predicted_ids(model, [inputs], [chosen])
        assert torch.equal(predicted, log_probabilities(model, inputs, chosen).argmax(-1))
        found = response_logps(model, [inputs], [[chosen, rejected]], targets=[chosen])
        plain = response_logps(model, [inputs], [[chosen, rejected]])
        masked = response_logps(
            model, [inputs], [[chosen]], targets=[chosen], masks=[[[False, *[True] * (len(chosen) - 1)]]]
        )
    assert torch.equal(found.tokens[:, 2], found.tokens[:, 0]) and torch.equal(found.tokens[:, :2], plain.tokens)
    assert torch.equal(masked.mask[:, 0], masked.mask[:, 1]) and not masked.mask[0, 1, 0]
    with pytest.raises(ValueError, match=r"targets: needs for each prompt the ids of as many tokens"):
        response_logps(model, [inputs], [[chosen]], targets=[chosen[:-1]])
    with pytest.raises(ValueError, match="targets: needs token ids in 0"):
        response_logps(model, [inputs], [[chosen]], targets=[[-1] * len(chosen)])


def test_a_mixture_takes_both_kinds_of_examples(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    source = MixedSource(DistortedSource(STEPS, SEED, with_stored=True), StoredSource(), p=0.5, seed=1)
    both = replace(learner(model, processor, copy.deepcopy(model), False, tmp_path), source=source)
    kinds = {one.distorted is None for one in source(model, processor, EXAMPLES)}
    assert kinds == {True, False} and both.accumulate_gradients(0, EXAMPLES)[0] == len(EXAMPLES)


def test_mdpo_has_the_loss_and_the_gradients_of_its_rule(tmp_path: Path) -> None:
    """Also where a source knows sums of the reference, which has to score the distorted images too."""
    model, processor = fresh_miniature()
    policy, reference = perturbed(model, 1).train(), perturbed(fresh_miniature()[0], 2).eval()
    plain = copy.deepcopy(policy).eval()
    losses = torch.cat([mdpo_rule(plain, reference, processor, example) for example in EXAMPLES])
    losses.sum().backward()

    def stored(*arguments: Any) -> list[Any]:
        return [one._replace(reference_logps=(-1.0, -2.0)) for one in DistortedSource(STEPS, SEED)(*arguments)]

    ours = replace(learner(policy, processor, reference, True, tmp_path), objective=MDPO, source=stored)
    sums = ours.accumulate_gradients(0, EXAMPLES)
    assert float(sums[1]) == pytest.approx(float(losses.detach().sum()), rel=1e-5)
    assert_equal_gradients(gradients(policy), gradients(plain))


def test_mdpo_averages_over_several_rejected_responses(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    reference = perturbed(fresh_miniature()[0], 2).eval()

    def loss(*rejected: str) -> float:
        def source(model: Any, processor: Any, examples: Any) -> list[Any]:
            return [Candidates(("A red car.", *rejected), distorted=Noise(STEPS, "clip", SEED, 1, 1)) for _ in examples]

        ours = replace(learner(model, processor, reference, True, tmp_path), objective=MDPO, source=source)
        return float(ours.accumulate_gradients(0, EXAMPLES[:1])[1])

    first, second = loss("No."), loss("There is a bed.")
    assert first != second and loss("No.", "There is a bed.") == pytest.approx((first + second) / 2, rel=1e-5)


def test_mdpo_needs_distorted_images_and_a_rejected_response(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    ours = replace(learner(model, processor, copy.deepcopy(model), True, tmp_path), objective=MDPO)
    with pytest.raises(ValueError, match=r"source: needs distorted images for this objective, got none for .*scene-0"):
        replace(ours, source=StoredSource()).accumulate_gradients(0, EXAMPLES)
    fewer = "objective: needs two responses or more and distorted images"
    with pytest.raises(ValueError, match=fewer):
        replace(ours, source=DistortedSource(with_stored=False)).accumulate_gradients(0, EXAMPLES)
    with pytest.raises(ValueError, match="changed_weight: needs a loss without distorted images, got mdpo_loss"):
        pairwise(mdpo_loss, changed_weight=5)
    objective = parse_objective(["mdpo", "beta=0.1", "anchor=0.25"])
    assert objective == MDPO
    check_fit(DistortedSource(), objective)
    for source in (StoredSource(), SupervisedSource(), DistortedSource(with_stored=False)):
        with pytest.raises(ValueError, match=fewer):
            check_fit(source, objective)
