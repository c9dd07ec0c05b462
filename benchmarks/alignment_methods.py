"""Ways of aligning: where pairs come from, and what is minimised. All take the same images, references and steps.

Rows of runs that have ended are kept by the name of their method: one that changes needs another name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from alignment_rejected import (
    PAPER,
    Rejected,
    Start,
    bdhs,
    corrupted,
    flipped_answers,
    other_captions,
    others_and_flipped,
)
from alignment_world import Mixture, same_claims, truthful

from mmbdhs.losses import dpo_loss, ipo_loss, slic_loss
from mmbdhs.miniature.demo import minilm
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

Source = Callable[[Start], PairSource]

# The likelihood of the chosen response keeps captions from growing poorer.
anchored = partial(pairwise, sft_weight=0.2)
DPO = anchored(dpo_loss, beta=0.3)
MIXTURE = Mixture()
RATE = 4e-4


@dataclass(frozen=True)
class Method:
    """rejected: the responses that records get before training; where one is the chosen response, the pair is left out.
    mixture: what is said about each image. training: settings of `TrainConfig` that differ from those of the others."""

    rejected: Rejected | None = None
    source: Source = lambda start: StoredSource()
    objective: Objective = DPO
    mixture: Mixture = MIXTURE
    training: Mapping[str, Any] = field(default_factory=dict)


def online_bdhs(with_stored: bool) -> Source:
    return lambda start: OnlineBDHSSource(replace(PAPER, seed=start.seed), same_claims, with_stored)


def online_pairs(oracle: bool) -> Source:
    def source(start: Start) -> PairSource:
        annotator = truthful if oracle else LikelihoodAnnotator(start.model, start.processor)
        return OnlinePairsSource(annotator, replace(PAPER, seed=start.seed))

    return source


def mixed(oracle: bool) -> Source:
    return lambda start: MixedSource(StoredSource(), online_pairs(oracle)(start), p=0.5, seed=start.seed)


def distorted(start: Start) -> PairSource:
    return DistortedSource(500, start.seed, with_stored=False, noise_range="wrap")


LORA = {"lora_r": 128, "lora_alpha": 256, "projector_learning_rate": RATE}
SFT, CONTROL, FLIPPED, BDHS = "SFT", "BDHS, rho 0", "flipped answers", "BDHS"
MAIN = {
    SFT: Method(source=lambda start: SupervisedSource(), objective=supervised()),
    CONTROL: Method(bdhs(mask_threshold=0.0)),
    "other captions, flipped answers": Method(others_and_flipped),
    FLIPPED: Method(flipped_answers),
    "oracle corrupter": Method(corrupted),
    BDHS: Method(bdhs()),
}

# Every other arm, those first that explain the ones above.
MORE = {
    "BDHS, swapped answers left out": Method(bdhs(swapped=False)),
    "BDHS, captions alone": Method(bdhs(), mixture=Mixture(questions=False)),
    "BDHS, questions alone": Method(bdhs(), mixture=Mixture(captions=False)),
    "other captions": Method(other_captions),
    "BDHS, true answers": Method(bdhs(), mixture=Mixture(true_answers=True)),
    "SFT, true answers": replace(MAIN[SFT], mixture=Mixture(true_answers=True)),
    "BDHS, answers of two sentences too": Method(bdhs(), mixture=Mixture(both=True)),
    "BDHS, MiniLM": Method(bdhs(minilm)),
    "BDHS, no SFT term": Method(bdhs(), objective=pairwise(dpo_loss, beta=0.3)),
    "BDHS, SFT term 0.5": Method(bdhs(), objective=pairwise(dpo_loss, beta=0.3, sft_weight=0.5)),
    "BDHS, LoRA": Method(bdhs(), training=LORA),
    "online BDHS": Method(source=online_bdhs(with_stored=False)),
    "distorted as in POVID": Method(source=distorted),
    "averaged, others and flipped": Method(others_and_flipped, online_bdhs(with_stored=True)),
    "averaged, oracle corrupter": Method(corrupted, online_bdhs(with_stored=True)),
    "Online-DPO, oracle": Method(source=online_pairs(oracle=True)),
    "Online-DPO, itself": Method(source=online_pairs(oracle=False)),
    "Mixed-DPO, oracle": Method(bdhs(), mixed(oracle=True)),
    "Mixed-DPO, itself": Method(bdhs(), mixed(oracle=False)),
    "IPO": Method(bdhs(), objective=anchored(ipo_loss, per_token=True, beta=0.9)),
    "SLiC": Method(bdhs(), objective=anchored(slic_loss, beta=0.2)),
    "BDHS, noise 500": Method(bdhs(noise_steps=500)),
    "BDHS, unguided": Method(bdhs(guided=False)),
    **{f"BDHS, rho {share:g}": Method(bdhs(mask_threshold=share)) for share in (0.5, 0.9, 0.98, 1.0)},
}
