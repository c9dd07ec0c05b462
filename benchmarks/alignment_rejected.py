"""Rejected responses for the alignment benchmark: by Algorithm 1, and by rivals that need no such sampling."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, NamedTuple

from alignment_world import Records, same_claims, scene_of

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample
from mmbdhs.miniature.kinds import COLOURS, TYPICAL_COLOUR
from mmbdhs.miniature.language import Mention, mentions, object_question
from mmbdhs.miniature.world import Scene
from mmbdhs.sampling import leading_answer


class Start(NamedTuple):
    """The model that is to be aligned, in place; its processor; the seed of all draws."""

    model: Any
    processor: Any
    seed: int


Rejected = Callable[[Start, Records], list[str]]
PAPER = BDHSConfig(max_sentence_tokens=16, max_new_tokens=64)


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
