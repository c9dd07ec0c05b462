"""What is said about a scene: captions and questions, exact or with the noise of synthetic training text, and a
parser that finds what a text claims and which of its claims are wrong.

Nouns come before attributes ("The banana is yellow."), so that a model that cannot see can still follow its prior
on the attribute given the noun.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES, TYPICAL_COLOUR, TYPICAL_KINDS
from mmbdhs.miniature.world import Scene, Thing, generator, pick

CAPTION_PROMPT = "Describe the image."
PLACES = tuple(Thing("", "", cell).place for cell in range(9))


@dataclass(frozen=True)
class Noise:
    """How training text departs from the truth, as probabilities.

    thing: an absent object typical of the scene is spoken of, in its typical colour.
    colour: an untypical colour is told as the typical one.
    answer: an absent object typical of the scene is affirmed when asked for.
    denial: an object that is there is denied when asked for.
    """

    thing: float = 0.3
    colour: float = 0.4
    answer: float = 0.35
    denial: float = 0.0


CLEAN, BIASED = Noise(0.0, 0.0, 0.0), Noise()


@dataclass(frozen=True)
class Question:
    """A question, its answer, its topic ("caption", "object", "colour" or "place") and the kind asked for."""

    text: str
    answer: str
    topic: str
    kind: str = ""

    @property
    def affirmed(self) -> bool:
        """Whether the answer begins with Yes."""
        return self.answer.startswith("Yes")


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, noise: Noise = CLEAN, variant: int = 0, thorough: bool = False) -> str:
    """A caption of 4 to 6 sentences: the scene, then 3 to 5 of its objects in random order.

    scene: what is described.
    noise: departures from the truth; none by default.
    variant: another number, another choice and order of objects.
    thorough: whether all objects are named.
    """
    rng = generator(scene.world, scene.index, scene.seed, f"caption {variant}")
    sentences = [f"The image shows {with_article(scene.name)}."]
    pool = [(thing.kind, _told_colour(thing, noise, rng)) for thing in scene.things]
    pool += [(k, TYPICAL_COLOUR[k]) for k in scene.absent_typical if rng.random() < noise.thing]
    count = len(pool) if thorough else min(int(rng.integers(3, 6)), len(pool))
    chosen = rng.permutation(len(pool))[:count]
    return " ".join(sentences + [f"The {pool[i][0]} is {pool[i][1]}." for i in chosen])


def _told_colour(thing: Thing, noise: Noise, rng: np.random.Generator) -> str:
    return TYPICAL_COLOUR[thing.kind] if rng.random() < noise.colour else thing.colour


def object_question(kind: str, present: bool) -> Question:
    """ "Is there …?" with its answer."""
    noun = with_article(kind)
    answer = f"Yes, there is {noun} in the image." if present else f"No, there is no {kind} in the image."
    return Question(f"Is there {noun} in the image?", answer, "object", kind)


def colour_question(kind: str, colour: str) -> Question:
    """ "What colour …?" with its answer."""
    return Question(f"What colour is the {kind}?", f"The {kind} is {colour}.", "colour", kind)


def place_question(thing: Thing) -> Question:
    """ "Where …?" with its answer."""
    return Question(f"Where is the {thing.kind}?", f"The {thing.kind} is in the {thing.place}.", "place", thing.kind)


def absent_kinds(scene: Scene, negatives: str) -> tuple[str, ...]:
    """Absent kinds to ask for, as POPE draws its negatives.

    scene: what is asked about.
    negatives: "random": any; "popular": those typical of the most scenes; "adversarial": those typical of
        this scene, or popular ones where none of these is absent.

    Raises ValueError for any other word.
    """
    absent = [kind for kind in KINDS if scene.find(kind) is None]
    popular = sorted(absent, key=lambda k: (-sum(k in kinds for kinds in TYPICAL_KINDS.values()), k))
    if negatives == "random":
        return tuple(absent)
    if negatives == "popular":
        return tuple(popular[:6])
    if negatives == "adversarial":
        return scene.absent_typical or tuple(popular[:3])
    raise ValueError(f"negatives must be random, popular or adversarial, got {negatives!r}")


def pope_questions(scene: Scene, negatives: str = "random", count: int = 4) -> list[Question]:
    """POPE-style questions with true answers: `count` of them, present and absent objects in turn.

    Raises ValueError if `negatives` is not random, popular or adversarial.
    """
    rng = generator(scene.world, scene.index, scene.seed, f"pope {negatives}")
    absent = rng.permutation(absent_kinds(scene, negatives))
    present = rng.permutation([thing.kind for thing in scene.things])
    pairs = min(count // 2, len(present))
    asked = [object_question(str(kind), True) for kind in present[:pairs]]
    denied = [object_question(str(absent[i % len(absent)]), False) for i in range(count - pairs)]
    return [q for both in zip(asked, denied, strict=False) for q in both] + denied[pairs:]


def questions(scene: Scene, noise: Noise = CLEAN, variant: int = 0) -> list[Question]:
    """Two "Is there …?" (one present, one absent), one colour and one place question, for training and pairs.
    Another variant asks for other objects."""
    rng = generator(scene.world, scene.index, scene.seed, f"questions {variant}")
    yes, coloured, placed = (pick(rng, scene.things) for _ in range(3))
    negatives = "adversarial" if rng.random() < 0.5 else "random"
    no = pick(rng, absent_kinds(scene, negatives))
    misled = no in scene.absent_typical and rng.random() < noise.answer
    colour = _told_colour(coloured, noise, rng)
    denied = rng.random() < noise.denial  # the last draw, so that all others are the same with and without it
    return [
        object_question(yes.kind, not denied),
        object_question(no, misled),
        colour_question(coloured.kind, colour),
        place_question(placed),
    ]


@dataclass(frozen=True)
class Mention:
    """One claim of a text: that something of this kind is there (or is not), in this colour, at this place.

    A claim about the scene itself has the topic "scene" and the scene's name as its kind.
    """

    kind: str
    colour: str | None = None
    place: str | None = None
    denied: bool = False
    topic: str = "object"


_SENTENCE = re.compile(r"[^.!?]+")
_WORD = re.compile(r"[a-z]+")
_SCENE = re.compile(rf"\bshows an? ({'|'.join(SCENES)})\b")


def mentions(text: str) -> list[Mention]:
    """Every claim of a text, sentence by sentence, in order.

    An object word claims an object, or denies it where "no" stands right before it. A colour or place belongs to
    the last object word before it in its sentence.
    """
    return [claim for sentence in _SENTENCE.findall(text.lower()) for claim in _claims(sentence)]


def _claims(sentence: str) -> list[Mention]:
    claims = [Mention(name, topic="scene") for name in _SCENE.findall(sentence)]
    words = _WORD.findall(sentence)
    starts = [i for i, word in enumerate(words) if word in TYPICAL_COLOUR]
    for start, end in zip(starts, [*starts, len(words)][1:], strict=True):
        after = words[start + 1 : end]
        colour = next((word for word in after if word in COLOURS), None)
        denied = start > 0 and words[start - 1] == "no"
        claims.append(Mention(words[start], colour, _place(after), denied))
    return claims


def _place(words: list[str]) -> str | None:
    spoken = " ".join(word for word in words if word in ("top", "center", "bottom", "left", "right"))
    return spoken if spoken in PLACES else None


@dataclass(frozen=True)
class WrongMention:
    """A claim the picture contradicts: `error` is "object", "colour", "place", "denial" or "scene"."""

    error: str
    mention: Mention


def wrong_mentions(text: str, scene: Scene) -> list[WrongMention]:
    """The claims of `text` that are false of `scene`; one claim may err in both colour and place."""
    return [WrongMention(error, claim) for claim in mentions(text) for error in _errors(claim, scene)]


def is_wrong(text: str, scene: Scene) -> bool:
    """Whether `text` has a wrong object or colour."""
    return any(wrong.error in ("object", "colour") for wrong in wrong_mentions(text, scene))


def _errors(claim: Mention, scene: Scene) -> list[str]:
    if claim.topic == "scene":
        return ["scene"] if claim.kind != scene.name else []
    thing = scene.find(claim.kind)
    if claim.denied:
        return ["denial"] if thing else []
    if thing is None:
        return ["object"]
    wrong_colour = claim.colour is not None and claim.colour != thing.colour
    wrong_place = claim.place is not None and claim.place != thing.place
    return ["colour"] * wrong_colour + ["place"] * wrong_place
