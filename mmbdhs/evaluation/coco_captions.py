"""The benchmarks of captions of COCO images: CHAIR, and Object HalBench with or without a judge."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from mmbdhs.data import write_whole
from mmbdhs.evaluation.benchmark import JudgeRequest, Outcome, Question, Unjudged
from mmbdhs.evaluation.chair import (
    COCO_PHRASES,
    OBJECT_HALBENCH_PHRASES,
    CaptionObjects,
    ObjectVocabulary,
    caption_objects,
    chair_counts,
    function_name,
    halbench_counts,
    read_coco_captions,
    read_coco_objects,
)
from mmbdhs.evaluation.files import check_ids, check_unique, filled, read_instruction, read_rows, read_sections
from mmbdhs.evaluation.files import require_files as require
from mmbdhs.evaluation.verdicts import object_list

CHAIR_PROMPT = "Please describe this image in detail."
INSTRUCTION = """\
A person was asked a question about an image and answered it. Take the answer to be right and list the objects that it \
says are visible in the image. List only objects that the answer names. Give the name alone, without colour, material, \
number or any other property. Answer with a JSON list of strings and nothing else, such as ["dog", "table"], or [] if \
the answer names no visible object.

Question: {}

Answer: {}
"""
"""The library's own instruction to extract objects, of the same content as the published one."""

_COCO = "annotations_trainval2014.zip of cocodataset.org, and synonyms.txt of github.com/LisaAnne/Hallucination (data/)"
_SHORT = 3  # words of an answer from which no objects are extracted


class Captioned(NamedTuple):
    """An image to describe: its id, its file, the question, its objects and its reference captions."""

    id: str
    image: Path
    question: str
    truth: frozenset[str]
    references: tuple[str, ...]


class Annotations(NamedTuple):
    """COCO's annotations by image id: names of files, of objects, and captions."""

    files: dict[int, str]
    objects: dict[int, set[str]]
    captions: dict[int, list[str]]

    @classmethod
    def read(cls, folder: Path) -> Annotations:
        """Read every instances_*.json and captions_*.json of a folder."""
        found = cls({}, {}, {})
        for path in sorted(folder.glob("captions_*.json")):
            images = read_sections(path, "images")[0]
            found.files.update({image["id"]: image["file_name"] for image in images})
            found.captions.update(read_coco_captions(path))
        for path in sorted(folder.glob("instances_*.json")):
            found.objects.update(read_coco_objects(path))
        return found

    def captioned(self, number: int, images: Path, name: str, question: str) -> Captioned:
        """The image with this id. Raises ValueError if instances or captions lack it."""
        if number not in self.objects or number not in self.captions:
            raise ValueError(f"annotations: need instances and captions of every image, lack image {number}")
        truth, references = frozenset(self.objects[number]), tuple(self.captions[number])
        return Captioned(str(number), images / name, question, truth, references)


@dataclass(frozen=True)
class Chair(Unjudged):
    """CHAIR with Recall. `read` makes it.

    rows: the images, each with its truth.
    vocabulary: which words name which object.
    seed: of the choice of images; None where all are described.
    """

    name: ClassVar[str] = "chair"
    max_new_tokens: ClassVar[int] = 512
    rows: tuple[Captioned, ...]
    vocabulary: ObjectVocabulary
    seed: int | None

    @classmethod
    def read(
        cls,
        folder: Path,
        images: Path | None = None,
        count: int | None = None,
        seed: int = 0,
        prompt: str = CHAIR_PROMPT,
    ) -> Chair:
        """Read instances_*.json, captions_*.json and synonyms.txt.

        folder: of the files.
        images: folder of the images; None for images/ in `folder`.
        count: number of images, drawn at random; None for all. Most papers take 500 of val2014, each another 500.
        seed: of the draw.
        prompt: what the model is asked.

        Raises FileNotFoundError for missing files, ValueError for an image without instances or captions and for a
        `count` above the number of images.
        """
        require(cls.name, _COCO, *(folder / name for name in ("instances_*.json", "captions_*.json", "synonyms.txt")))
        known, place = Annotations.read(folder), Path(images or folder / "images")
        ids = sorted(known.files)
        if count is not None and not 0 < count <= len(ids):
            raise ValueError(f"count: needs a number from 1 to {len(ids)}, got {count}")
        chosen = ids if count is None else sorted(random.Random(seed).sample(ids, count))
        rows = tuple(known.captioned(number, place, known.files[number], prompt) for number in chosen)
        vocabulary = ObjectVocabulary.from_file(folder / "synonyms.txt", COCO_PHRASES)
        return cls(rows, vocabulary, None if count is None else seed)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the prompt, the lemmatiser and the seed of the choice of images."""
        facts = {"rows": len(self.rows), "prompt": self.rows[0].question, **_lemmatiser(self.vocabulary)}
        return facts if self.seed is None else {**facts, "seed": self.seed}

    def questions(self) -> list[Question]:
        """The prompt for each image."""
        return [Question(row.id, row.image, row.question) for row in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """The counts of `chair` for each caption, with its number of mentioned objects and of words."""
        check_ids("answers", answers, [row.id for row in self.rows])
        found = [caption_objects(answers[row.id], row.truth, row.references, self.vocabulary) for row in self.rows]
        lengths = [{"objects": (len(c.mentioned), 1.0), "length": (c.words, 1.0)} for c in found]
        counts = [{**chair_counts(c), **length} for c, length in zip(found, lengths, strict=True)]
        return [Outcome(row.id, row.image.name, (), count) for row, count in zip(self.rows, counts, strict=True)]


@dataclass(frozen=True)
class ObjectHalBench:
    """Object HalBench. `read` makes it.

    rows: the 300 images, each with its question and truth.
    vocabulary: which words name which object.
    objects: "judge", where a judge extracts the objects of an answer as a JSON list, as published, or "vocabulary".
    instruction: of the judge, with places {} for question and answer.
    instruction_from: whose instruction it is.
    """

    name: ClassVar[str] = "object_halbench"
    max_new_tokens: ClassVar[int] = 512
    rows: tuple[Captioned, ...]
    vocabulary: ObjectVocabulary
    objects: str
    instruction: str
    instruction_from: str

    @classmethod
    def read(
        cls,
        folder: Path,
        images: Path | None = None,
        objects: str = "judge",
        instruction: str | os.PathLike[str] | None = None,
    ) -> ObjectHalBench:
        """Read obj_halbench_300_with_image.jsonl, instances_*.json, captions_*.json and synonyms.txt.

        The published rows hold their images, in base 64. An image that is not in the folder is written there.

        folder: of the files.
        images: folder of the images; None for images/ in `folder`.
        objects, instruction: as the class takes them; the instruction is a file (`prompt_template` in
            eval_gpt_obj_halbench.py of RLHF-V, with {} for both its places). None: the library's own is used.
        """
        if objects not in ("judge", "vocabulary"):
            raise ValueError(f"objects: needs judge or vocabulary, got {objects!r}")
        path = folder / "obj_halbench_300_with_image.jsonl"
        annotations = [folder / name for name in ("instances_*.json", "captions_*.json", "synonyms.txt")]
        require(cls.name, f"eval/data/ of github.com/RLHF-V/RLAIF-V, {_COCO}", path, *annotations)
        given, known = read_rows(path, "image_id", "question"), Annotations.read(folder)
        check_unique(path, [row["image_id"] for row in given])
        place = Path(images or folder / "images")
        rows = []
        for row in given:
            number = int(row["image_id"])
            rows.append(known.captioned(number, place, known.files.get(number, f"{number}.jpg"), row["question"]))
            if "image" in row and not rows[-1].image.exists():
                place.mkdir(parents=True, exist_ok=True)
                write_whole(rows[-1].image, [base64.b64decode(row["image"])])
        vocabulary = ObjectVocabulary.from_file(folder / "synonyms.txt", OBJECT_HALBENCH_PHRASES)
        return cls(tuple(rows), vocabulary, objects, *read_instruction(instruction, INSTRUCTION))

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the lemmatiser, and how objects are found, with the instruction of a judge."""
        found = {"objects": self.objects, **_lemmatiser(self.vocabulary)}
        judged = {"instruction": self.instruction_from} if self.objects == "judge" else {}
        return {"rows": len(self.rows), "suffix": "", **found, **judged}

    def questions(self) -> list[Question]:
        """Every question as it is."""
        return [Question(row.id, row.image, row.question) for row in self.rows]

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        """One request for each answer of more than three words; none where the vocabulary finds the objects."""
        check_ids("answers", answers, [row.id for row in self.rows])
        asked = [row for row in self.rows if self.objects == "judge" and len(answers[row.id].split()) > _SHORT]
        return [JudgeRequest(row.id, filled(self.instruction, row.question, answers[row.id])) for row in asked]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """The counts of `object_halbench` for each answer.

        A verdict that cannot be read names no object. (The original asks up to 100 times, then stops.)
        """
        check_ids("verdicts", verdicts, [request.id for request in self.judge_requests(answers)])
        return [Outcome(r.id, r.image.name, (), self._counts(r, answers[r.id], verdicts.get(r.id))) for r in self.rows]

    def _counts(self, row: Captioned, answer: str, verdict: str | None) -> dict[str, tuple[float, float]]:
        found = caption_objects(answer, row.truth, row.references, self.vocabulary)
        if self.objects == "vocabulary":
            return halbench_counts(found)
        listed = [] if verdict is None else object_list(verdict)
        words = tuple(word for name in listed or () for word in listed_words(name, self.vocabulary))
        nodes = tuple(self.vocabulary.nodes[word] for word in words)
        unreadable = {"unreadable": (float(listed is None), 1.0)}
        return {**halbench_counts(CaptionObjects(nodes, words, found.truth, found.words)), **unreadable}


def listed_words(name: str, vocabulary: ObjectVocabulary) -> tuple[str, ...]:
    """The words of the vocabulary in a name that a judge listed: its names of two words, or else its last word.

    "a stuffed teddy bear" is a teddy bear, "wooden chair" a chair, and "dog collar" neither a dog nor anything else.
    The original takes each run of nouns in place of the last word, as a tagger finds them.
    """
    words = vocabulary.surface_words(name)
    if pairs := tuple(word for word in words if " " in word):
        return pairs
    last = vocabulary.surface_words(name.split()[-1]) if name.split() else ()
    return last[-1:]


def _lemmatiser(vocabulary: ObjectVocabulary) -> dict[str, str | int]:
    return {"lemmatiser": function_name(vocabulary.singularise)}
