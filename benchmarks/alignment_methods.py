"""Ways of aligning: where pairs come from, and what is minimised. All take the same images, captions and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from alignment_world import same_claims, truthful

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.losses import dpo_loss, ipo_loss, slic_loss
from mmbdhs.training import (
    DistortedSource,
    LikelihoodAnnotator,
    MixedSource,
    Objective,
    OnlineBDHSSource,
    OnlinePairsSource,
    PairSource,
    StoredSource,
    SupervisedSource,
    pairwise,
    supervised,
)

Records = list[dict[str, Any]]


class Start(NamedTuple):
    """The model that is to be aligned, in place; its processor; the seed of all draws."""

    model: Any
    processor: Any
    seed: int


Rejected = Callable[[Start, Records], list[str]]
Source = Callable[[Start], PairSource]

# The likelihood of the chosen response keeps captions from growing poorer.
anchored = partial(pairwise, sft_weight=0.5)


DPO = anchored(dpo_loss, beta=0.3)
PAPER = BDHSConfig(max_sentence_tokens=16, max_new_tokens=64)


@dataclass(frozen=True)
class Method:
    """rejected: the responses that records get before training."""

    rejected: Rejected | None = None
    source: Source = lambda start: StoredSource()
    objective: Objective = DPO


def other_captions(start: Start, records: Records) -> list[str]:
    """The caption of the next image for each image: it describes something else."""
    captions = [record["chosen"] for record in records]
    return [*captions[1:], captions[0]]


def bdhs(**settings: Any) -> Rejected:
    """Algorithm 1 by the model as it comes in."""

    def rejected(start: Start, records: Records) -> list[str]:
        config = replace(PAPER, seed=start.seed, **settings)
        images, prompts, captions, keys = (
            [record[column] for record in records] for column in ("images", "prompt", "chosen", "key")
        )
        samples = bdhs_sample(*start[:2], images, prompts, captions, config, same_claims, keys)
        return [sample.rejected for sample in samples]

    return rejected


def online_bdhs(with_stored: bool) -> Source:
    return lambda start: OnlineBDHSSource(replace(PAPER, seed=start.seed), same_claims, with_stored)


def online_pairs(oracle: bool) -> Source:
    def source(start: Start) -> PairSource:
        annotator = truthful if oracle else LikelihoodAnnotator(start.model, start.processor)
        return OnlinePairsSource(annotator, replace(PAPER, seed=start.seed))

    return source


def mixed(oracle: bool) -> Source:
    return lambda start: MixedSource(StoredSource(), online_pairs(oracle)(start), p=0.5, seed=start.seed)


METHODS = {
    "SFT": Method(source=lambda start: SupervisedSource(), objective=supervised()),
    "DPO, other captions": Method(other_captions),
    "DPO, distorted": Method(source=lambda start: DistortedSource(500, start.seed, with_stored=False)),
    "DPO, BDHS noise": Method(bdhs(noise_steps=500)),
    "DPO, BDHS, rho 0": Method(bdhs(mask_threshold=0.0)),
    "DPO, BDHS": Method(bdhs()),
    "DPO, online BDHS": Method(source=online_bdhs(with_stored=False)),
    "DPO, averaged": Method(other_captions, online_bdhs(with_stored=True)),
    "IPO, BDHS": Method(bdhs(), objective=anchored(ipo_loss, per_token=True, beta=0.9)),
    "SLiC, BDHS": Method(bdhs(), objective=anchored(slic_loss, beta=0.2)),
    "Online-DPO, oracle": Method(source=online_pairs(oracle=True)),
    "Online-DPO, itself": Method(source=online_pairs(oracle=False)),
    "Mixed-DPO, oracle": Method(bdhs(), mixed(oracle=True)),
    "Mixed-DPO, itself": Method(bdhs(), mixed(oracle=False)),
}

# Table 15 of the paper: what hides the image, how much of it, and whether the reference guides.
ABLATION = {
    f"{'guided' if guided else 'unguided'}, rho {threshold:g}": Method(bdhs(guided=guided, mask_threshold=threshold))
    for guided in (True, False)
    for threshold in (0.0, 0.98, 0.99, 1.0)
} | {f"guided, noise {steps}": Method(bdhs(noise_steps=steps)) for steps in (100, 200, 300, 400, 500)}
