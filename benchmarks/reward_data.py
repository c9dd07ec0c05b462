"""What the benchmark of rewards learns from: a reward that knows the scene, and pairs as annotators make them.

An annotator who changes a text may leave words of their own in it. Kinds with * have chosen, kinds with † rejected
responses in other words than the policy's, with the same claims.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment_rejected import Start, corrupted
from alignment_world import Records, scene_of
from PIL import Image

from mmbdhs.miniature.language import mentions, with_article, wrong_mentions
from mmbdhs.miniature.world import Scene, render
from mmbdhs.sampling import SamplingConfig, sample_responses
from mmbdhs.training import Rollout

SAMPLING = SamplingConfig(max_new_tokens=64)
SAMPLES = 4  # of the policy for each image, of which the best and the worst make a pair
MARGIN = 0.5  # of their truthfulness
KINDS_OF_PAIRS = ("corruptions", "corruptions*", "corruptions†", "corrections", "corrections*", "rankings")


def truthfulness(text: str, scene: Scene) -> float:
    """The share of the scene's objects that are named, minus the share of claims about objects that are wrong."""
    claims = [claim for claim in mentions(text) if claim.topic == "object"]
    wrong = sum(one.error in ("object", "colour") for one in wrong_mentions(text, scene))
    named = {claim.kind for claim in claims} & {thing.kind for thing in scene.things}
    return len(named) / len(scene.things) - wrong / max(1, len(claims))


def oracle(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """The truthfulness of each response, as a reward of `RolloutSource`."""
    return [[truthfulness(text, scene_of(one.key)) for text in one.responses] for one in rollouts]


def pairs_of_each_kind(start: Start, records: Records) -> dict[str, Records]:
    """Pairs by their kind, without images, for records with true captions. Not every image has a pair of each kind."""
    sampled = list(zip(records, _sampled(start, records), strict=True))
    made = {
        "corruptions": corruptions(start, records),
        "corrections": [
            _pair(record, put_right(texts[0], scene_of(record["key"])), texts[0]) for record, texts in sampled
        ],
        "rankings": [ranked(record, texts) for record, texts in sampled],
    }
    found = {kind: [one for one in pairs if one["chosen"] != one["rejected"]] for kind, pairs in made.items()}
    for name in KINDS_OF_PAIRS:
        if name not in found:
            column = "chosen" if name.endswith("*") else "rejected"
            found[name] = [{**one, column: in_other_words(one[column])} for one in found[name[:-1]]]
    return found


def corruptions(start: Start, records: Records) -> Records:
    """True captions, and the same with some claims changed (POVID)."""
    return [
        _pair(record, record["chosen"], text) for record, text in zip(records, corrupted(start, records), strict=True)
    ]


def ranked(record: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The most and the least truthful of captions of the policy (VLFeedback), or one twice where they are too close."""
    value = {text: truthfulness(text, scene_of(record["key"])) for text in texts}
    best, worst = max(texts, key=value.__getitem__), min(texts, key=value.__getitem__)
    return _pair(record, best, worst if value[best] - value[worst] >= MARGIN else best)


def _sampled(start: Start, records: Records) -> list[list[str]]:
    """Captions of the policy for each record."""
    columns = [[record[name] for record in records] for name in ("images", "prompt")]
    config, keys = replace(SAMPLING, seed=start.seed), [record["key"] for record in records]
    found = sample_responses(start.model, start.processor, *columns, config, SAMPLES, keys=keys)
    return [[one.text for one in responses] for responses in found]


def put_right(text: str, scene: Scene) -> str:
    """A caption of the policy as an annotator corrects it (RLHF-V): with true colours, and with an untold object in
    place of each false one, for as long as there are any."""
    told = [claim.kind for claim in mentions(text) if claim.topic == "object"]
    untold = (thing for thing in scene.things if thing.kind not in told)
    things = [scene.find(kind) or next(untold, None) for kind in told]
    sentences = [f"The {thing.kind} is {thing.colour}." for thing in things if thing]
    return " ".join([f"The image shows {with_article(scene.name)}.", *sentences])


def in_other_words(text: str) -> str:
    """The same claims in as many other words."""
    return re.sub(r"\bThe (\w+) is\b", r"One \1 is", text)


def _pair(record: Mapping[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    return {"key": record["key"], "prompt": record["prompt"], "chosen": chosen, "rejected": rejected}


def with_images(pairs: Records) -> Records:
    """The pairs with the pictures that they are about."""
    return [{**pair, "images": [_picture(pair["key"])]} for pair in pairs]


@functools.cache
def _picture(key: str) -> Image.Image:
    return render(scene_of(key))
