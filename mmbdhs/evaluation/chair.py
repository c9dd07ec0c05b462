"""CHAIR, Caption Hallucination Assessment with Image Relevance (Rohrbach et al., EMNLP 2018), and the two rates of
Object HalBench (Yu et al., RLHF-V, CVPR 2024), which count the same objects in another way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbdhs.evaluation.files import read_sections
from mmbdhs.evaluation.intervals import Estimate, mean_interval, ratios
from mmbdhs.evaluation.results import Result, check_lengths, check_texts
from mmbdhs.evaluation.words import singular, tokens

_ANIMALS = ("animal", "bear", "bird", "cat", "cow", "cub", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
COCO_PHRASES: Mapping[str, str] = {
    **{f"{age} {animal}": animal for age in ("adult", "baby") for animal in _ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "sport ball": "ball",
    "toilet seat": "toilet",
    "home plate": "home plate",
}
"""Pairs of words that the original CHAIR reads as another word on COCO, in addition to the two-word names of objects: a
baby elephant is not a person, and a home plate is no object at all. It never finds "sports ball" as one word, because
the singular of that is "sport ball"."""

OBJECT_HALBENCH_PHRASES: Mapping[str, str] = {**COCO_PHRASES, "train track": "train track"}
"""The pairs of words of Object HalBench, for which a train track is no train."""

_FEWEST_WORDS = 4  # Object HalBench takes no objects from shorter answers


@dataclass(frozen=True)
class ObjectVocabulary:
    """A table of the words that name each object.

    The rules are the original's: a word counts wherever it occurs, so "there is no dog" mentions a dog, and names of
    three words or more are never found. Three things differ: names are lower-cased ("iPhone" is found), words are split
    by `mmbdhs.evaluation.words.tokens` where the original uses NLTK, and the singular comes from `singularise`, where
    the original uses `pattern.en` and its successors use WordNet.

    With the published table, 1,500 captions that five models wrote of COCO images mention 8,674 objects by these rules
    and 8,581 by the original's. The 93 others have three causes: `pattern.en` reads "bus" as "bu" (88) and "ties" as
    "ty" (1), and NLTK takes a full stop with no space after it for a part of the word (4).

    nodes: for every name, one or two words in the singular, its object (the node word).
    phrases: pairs of words, in the singular, and the word as which each is read. Every two-word name is one. The word
        does not have to be an object's name.
    singularise: from a lower-case word to its singular.
    """

    nodes: Mapping[str, str]
    phrases: Mapping[str, str]
    singularise: Callable[[str], str] = singular

    @classmethod
    def build(
        cls,
        synonyms: Iterable[Sequence[str]],
        phrases: Mapping[str, str] | None = None,
        singularise: Callable[[str], str] = singular,
    ) -> ObjectVocabulary:
        """Build a vocabulary.

        synonyms: for each object its names, the node word first.
        phrases, singularise: as the class takes them.

        Raises ValueError for a name of two objects.
        """
        nodes: dict[str, str] = {}
        for names in synonyms:
            for name in names:
                if nodes.setdefault(_joined(name, singularise), names[0]) != names[0]:
                    raise ValueError(
                        f"synonyms: needs names of one object, {name!r} names {names[0]!r} and "
                        f"{nodes[_joined(name, singularise)]!r}"
                    )
        pairs = {name: name for name in nodes if name.count(" ") == 1}
        return cls(nodes, pairs | dict(phrases or {}), singularise)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        phrases: Mapping[str, str] = COCO_PHRASES,
        singularise: Callable[[str], str] = singular,
    ) -> ObjectVocabulary:
        """Read a vocabulary in the layout of CHAIR's synonyms.txt: one object a line, its names separated by commas."""
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return cls.build([_names(path, line) for line in lines if line.strip()], phrases, singularise)

    def node(self, name: str) -> str:
        """The object with this name. Raises ValueError for a name that the vocabulary lacks."""
        key = _joined(name, self.singularise)
        if key not in self.nodes:
            raise ValueError(f"vocabulary: needs every object of the truth, lacks {name!r}")
        return self.nodes[key]

    def surface_words(self, text: str) -> tuple[str, ...]:
        """The words by which a text names objects, in the singular, a phrase as one word, in order and with repeats."""
        words = self._merged([self.singularise(word) for word in tokens(text)])
        if "toilet" in words:  # a toilet's seat is not a chair
            words = [word for word in words if word != "seat"]
        return tuple(word for word in words if word in self.nodes)

    def mentions(self, text: str) -> tuple[str, ...]:
        """The objects that a text names, in its order and with repeats."""
        return tuple(self.nodes[word] for word in self.surface_words(text))

    def _merged(self, words: list[str]) -> list[str]:
        """The words, with every pair that is a phrase as one word, from the left."""
        merged, place = [], 0
        while place < len(words):
            pair = " ".join(words[place : place + 2])
            merged.append(self.phrases.get(pair, words[place]))
            place += 2 if pair in self.phrases else 1
        return merged


@dataclass(frozen=True)
class CaptionObjects:
    """The objects of one caption and of its image.

    mentioned: the objects that the caption names, with repeats.
    surface_words: the word in the caption that names each of them, such as "man" for a person.
    truth: the objects of the image.
    words: the caption's length in words, split at white space.

    Raises ValueError unless each mention has its surface word.
    """

    mentioned: tuple[str, ...]
    surface_words: tuple[str, ...]
    truth: frozenset[str]
    words: int

    def __post_init__(self) -> None:
        if len(self.surface_words) != len(self.mentioned):
            raise ValueError(f"surface_words: needs one for each of {self.mentioned}, got {self.surface_words}")

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """Mentions of objects that are not in the image, with repeats."""
        return tuple(name for name in self.mentioned if name not in self.truth)


@dataclass(frozen=True)
class ChairResult(Result):
    """What `chair` returns. Captions are taken as independent of each other.

    chair_i: share of hallucinated mentions among all mentions, with repeats.
    chair_s: share of captions with a hallucinated mention.
    recall: share of the images' objects that their caption mentions, Σ|mentioned ∩ truth| / Σ|truth|.
    objects: mentions per caption.
    length: words per caption, split at white space.
    captions: the objects of each caption.
    singulariser: the function that made words singular; results of different ones do not compare.
    """

    chair_i: Estimate
    chair_s: Estimate
    recall: Estimate
    objects: Estimate
    length: Estimate
    captions: tuple[CaptionObjects, ...]
    singulariser: str


@dataclass(frozen=True)
class ObjectHalBenchResult(Result):
    """What `object_halbench` returns.

    response_rate: share of captions with a hallucinated object among those with any object.
    object_rate: share of hallucinated mentions among all mentions, each surface word once per caption.
    recall: as CHAIR's.
    """

    response_rate: Estimate
    object_rate: Estimate
    recall: Estimate


def chair(
    captions: Sequence[str],
    truth: Sequence[Collection[str]],
    vocabulary: ObjectVocabulary,
    reference_captions: Sequence[Sequence[str]] | None = None,
) -> ChairResult:
    """Compare the objects that captions name with those that their images show.

    captions: one per image.
    truth: the names of each image's objects, any that the vocabulary has.
    vocabulary: which words name which object.
    reference_captions: human captions of each image, whose objects count as shown too; CHAIR as published needs them.

    Raises ValueError for lists of unequal length and objects that the vocabulary lacks.
    """
    check_lengths(captions=captions, truth=truth, reference_captions=reference_captions)
    check_texts("captions", captions)
    references = [()] * len(captions) if reference_captions is None else reference_captions
    found = tuple(caption_objects(*row, vocabulary) for row in zip(captions, truth, references, strict=True))
    return ChairResult(
        **ratios([chair_counts(caption) for caption in found]),
        objects=mean_interval([len(c.mentioned) for c in found]),
        length=mean_interval([c.words for c in found]),
        captions=found,
        singulariser=function_name(vocabulary.singularise),
    )


def object_halbench(captions: Sequence[CaptionObjects]) -> ObjectHalBenchResult:
    """The rates of Object HalBench, by the rules of RLHF-V's script.

    A caption's mentions are unique by surface word: "the dogs and a dog" mention one dog, "a man and a woman" are two
    mentions of a person. Captions of three words or fewer, split at white space, mention nothing.

    captions: the objects that `chair` found with a vocabulary of `OBJECT_HALBENCH_PHRASES`, or that a language model
        listed, as in the original.
    """
    check_lengths(captions=captions)
    return ObjectHalBenchResult(**ratios([halbench_counts(caption) for caption in captions]))


def chair_counts(caption: CaptionObjects) -> dict[str, tuple[float, float]]:
    """What a caption counts in each rate of CHAIR, as (numerator, denominator)."""
    wrong = len(caption.hallucinated)
    return {"chair_i": (wrong, len(caption.mentioned)), "chair_s": (wrong > 0, 1), "recall": _recall(caption)}


def halbench_counts(caption: CaptionObjects) -> dict[str, tuple[float, float]]:
    """What a caption counts in each rate of Object HalBench, as (numerator, denominator)."""
    unique = _unique(caption)
    wrong, mentions = len(unique.hallucinated), len(unique.mentioned)
    return {"response_rate": (wrong > 0, mentions > 0), "object_rate": (wrong, mentions), "recall": _recall(unique)}


def read_coco_objects(path: str | os.PathLike[str]) -> dict[int, set[str]]:
    """The names of the categories of each image id in COCO's instance annotations (JSON); none for an image without
    annotations. Raises ValueError if the file lacks a section or a category."""
    images, annotations, categories = read_sections(path, "images", "annotations", "categories")
    names = {category["id"]: category["name"] for category in categories}
    if unknown := {annotation["category_id"] for annotation in annotations} - set(names):
        raise ValueError(f"{path}: needs a category for every annotation, lacks {sorted(unknown)}")
    objects: dict[int, set[str]] = {image["id"]: set() for image in images}
    for annotation in annotations:
        objects.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    return objects


def read_coco_captions(path: str | os.PathLike[str]) -> dict[int, list[str]]:
    """The captions of each image id in COCO's caption annotations (JSON). Raises as `read_coco_objects`."""
    images, annotations = read_sections(path, "images", "annotations")
    captions: dict[int, list[str]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def caption_objects(
    caption: str, truth: Collection[str], references: Sequence[str], vocabulary: ObjectVocabulary
) -> CaptionObjects:
    """The objects of one caption, with the arguments of `chair` for one image."""
    if isinstance(truth, str) or isinstance(references, str):
        raise ValueError(f"truth, reference_captions: need a list for each caption, got {truth!r}, {references!r}")
    shown = {vocabulary.node(name) for name in truth}
    shown.update(name for reference in references for name in vocabulary.mentions(reference))
    surface_words = vocabulary.surface_words(caption)
    mentioned = tuple(vocabulary.nodes[word] for word in surface_words)
    return CaptionObjects(mentioned, surface_words, frozenset(shown), len(caption.split()))


def _unique(caption: CaptionObjects) -> CaptionObjects:
    """The caption as Object HalBench counts it."""
    long = caption.words >= _FEWEST_WORDS
    named = dict(zip(caption.surface_words, caption.mentioned, strict=True)) if long else {}
    return CaptionObjects(tuple(named.values()), tuple(named), caption.truth, caption.words)


def _recall(caption: CaptionObjects) -> tuple[float, float]:
    return len(caption.truth & set(caption.mentioned)), len(caption.truth)


def _joined(name: str, singularise: Callable[[str], str]) -> str:
    return " ".join(singularise(word) for word in name.lower().split())


def _names(path: str | os.PathLike[str], line: str) -> list[str]:
    names = [name.strip() for name in line.split(",")]
    if not all(names):
        raise ValueError(f"{path}: needs names separated by commas, got the line {line!r}")
    return names


def function_name(function: Callable[..., Any]) -> str:
    """The full name of a function."""
    return f"{function.__module__}.{function.__qualname__}"
