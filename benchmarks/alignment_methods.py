"""Ways of aligning: where pairs come from, and what is minimised. All take the same images, references and steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

from alignment_world import Mixture, Records, same_claims, scene_of, truthful

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample
from mmbdhs.losses import dpo_loss, ipo_loss, slic_loss
from mmbdhs.miniature.demo import minilm
from mmbdhs.miniature.kinds import COLOURS, TYPICAL_COLOUR
from mmbdhs.miniature.language import Mention, mentions, object_question
from mmbdhs.miniature.world import Scene
from mmbdhs.sampling import leading_answer
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


class Start(NamedTuple):
    """The model that is to be aligned, in place; its processor; the seed of all draws."""

    model: Any
    processor: Any
    seed: int


Rejected = Callable[[Start, Records], list[str]]
Source = Callable[[Start], PairSource]

# The likelihood of the chosen response keeps captions from growing poorer.
anchored = partial(pairwise, sft_weight=0.2)
DPO = anchored(dpo_loss, beta=0.3)
PAPER = BDHSConfig(max_sentence_tokens=16, max_new_tokens=64)
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


def other_captions(start: Start, records: Records) -> list[str]:
    """The caption of the next image for each caption: it describes something else."""
    captions = [record["chosen"] for record in records if record["topic"] == "caption"]
    following = islice(cycle(captions), 1, None)
    return [next(following) if record["topic"] == "caption" else record["chosen"] for record in records]


def flipped_answers(start: Start, records: Records) -> list[str]:
    """The opposite of each yes or no, and another colour for each that is asked for."""
    return [record["chosen"] if record["topic"] == "caption" else _flipped(record) for record in records]


def _flipped(record: Mapping[str, Any]) -> str:
    answer, claim = record["chosen"], mentions(record["chosen"])[-1]
    if record["topic"] == "object":
        return object_question(claim.kind, present=claim.denied).answer
    return answer.replace(f" {claim.colour}.", f" {_other_colour(claim, random.Random(record['key']))}.")


def _other_colour(claim: Mention, dice: random.Random) -> str:
    return dice.choice([colour for colour in COLOURS if colour != claim.colour])


def others_and_flipped(start: Start, records: Records) -> list[str]:
    """Captions of other images, and flipped answers."""
    both = zip(other_captions(start, records), flipped_answers(start, records), records, strict=True)
    return [caption if record["topic"] == "caption" else answer for caption, answer, record in both]


def corrupted(start: Start, records: Records) -> list[str]:
    """What a corrupter says that knows the image (C.1): what one would believe who cannot see it, and is false."""
    return [_corrupted(record, scene_of(record["key"])) for record in records]


def _corrupted(record: Mapping[str, Any], scene: Scene) -> str:
    dice = random.Random(record["key"])
    if record["topic"] == "object":
        return _flipped(record)
    claims = mentions(record["chosen"])
    if record["topic"] != "caption":
        return record["chosen"].replace(f" {claims[-1].colour}.", f" {_believed(claims[-1], scene, dice)}.")
    told = [_false_claim(claim, scene, dice) if dice.random() < 0.5 else claim for claim in claims[1:]]
    opening = record["chosen"].split(". ")[0]
    return " ".join([f"{opening}.", *(f"The {claim.kind} is {claim.colour}." for claim in told)])


def _false_claim(claim: Mention, scene: Scene, dice: random.Random) -> Mention:
    """A typical object that is not there, or another colour."""
    absent = dice.choice(scene.absent_typical) if scene.absent_typical and dice.random() < 0.5 else None
    return Mention(absent, TYPICAL_COLOUR[absent]) if absent else Mention(claim.kind, _believed(claim, scene, dice))


def _believed(claim: Mention, scene: Scene, dice: random.Random) -> str:
    """The typical colour, or any other one where it is the true or the told one."""
    thing, typical = scene.find(claim.kind), TYPICAL_COLOUR[claim.kind]
    true = thing.colour if thing else None
    wrong = [colour for colour in COLOURS if colour not in (claim.colour, true)]
    return typical if typical in wrong else dice.choice(wrong)


def bdhs(similarity: Callable[[], Any] = lambda: same_claims, swapped: bool = True, **settings: Any) -> Rejected:
    """Algorithm 1 by the model as it comes in.

    similarity: makes the similarity model. swapped: False to leave out pairs in which a yes or no was swapped.
    settings: of `BDHSConfig`.
    """

    def rejected(start: Start, records: Records) -> list[str]:
        config = replace(PAPER, seed=start.seed, **settings)
        columns = [[record[name] for record in records] for name in ("images", "prompt", "chosen")]
        keys = [record["key"] for record in records]
        samples = bdhs_sample(start.model, start.processor, *columns, config, similarity(), keys)
        pairs = zip(samples, columns[-1], strict=True)
        return [sample.rejected if swapped or not _swapped(sample, chosen) else chosen for sample, chosen in pairs]

    return rejected


def _swapped(sample: BDHSSample, chosen: str) -> bool:
    """Whether Algorithm 1 swapped a yes or no. An unguided response is the model's own."""
    return sample.guided and leading_answer(sample.rejected) != leading_answer(chosen)


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
SFT, CONTROL, RULE, BDHS = "SFT", "BDHS, rho 0", "other captions, flipped answers", "BDHS"
MAIN = {
    SFT: Method(source=lambda start: SupervisedSource(), objective=supervised()),
    CONTROL: Method(bdhs(mask_threshold=0.0)),
    RULE: Method(others_and_flipped),
    "flipped answers": Method(flipped_answers),
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
    "BDHS, LoRA, rate 2e-3": Method(bdhs(), training={**LORA, "learning_rate": 2e-3}),
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
