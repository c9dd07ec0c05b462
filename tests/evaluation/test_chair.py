"""CHAIR's rules one by one, on captions whose objects were counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmbdhs.evaluation import (
    OBJECT_HALBENCH_PHRASES,
    CaptionObjects,
    ObjectVocabulary,
    chair,
    object_halbench,
    read_coco_captions,
    read_coco_objects,
)
from mmbdhs.evaluation.words import singular

TABLE = """\
person, man, woman, child,  children, people, baby, passenger
dog, puppy
elephant
train
tie, bow, bow tie
sports ball, ball
hot dog
traffic light, street light
wine glass
knife
chair, seat
toilet
oven, stove, stove top oven
skis, ski
scissors
cell phone, iPhone
clock
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chair") / "synonyms.txt"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def vocabulary(table: Path) -> ObjectVocabulary:
    return ObjectVocabulary.from_file(table)


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A Man and his puppies; the dogs' ball.", "person dog dog sports-ball"),
        ("People, women and children.", "person person person"),
        ("There is no dog.", "dog"),
        ("Two hot dogs. It is hot. Dogs rest.", "hot-dog dog"),
        ("A street light by the light on the street.", "traffic-light"),
        ("A man in a bow tie, a tie and a bow.", "person tie tie tie"),
        ("A baby elephant and a baby.", "elephant person"),
        ("A passenger train with a passenger.", "train person"),
        ("A dog on a train track.", "dog train"),  # only Object HalBench has the phrase
        ("The hands show 11 o'clock.", ""),
        ("The clock shows 11 O’CLOCK, and the dog's clock does not.", "clock dog clock"),
        ("A do\u200bg, a \ufeffhot\u2060 dog\u200d and wine\u200b glas\u00adses.", "dog hot-dog wine-glass"),
        ("Knives and wine glasses, a glass.", "knife wine-glass"),
        ("The toilet seat is up.", "toilet"),
        ("The seat of a toilet.", "toilet"),
        ("The seat of a train.", "chair train"),
        ("A stove top oven.", "oven oven"),  # names of three words are not merged, as in the original
        ("A pair of skis and scissors.", "skis scissors"),
        ("An iPhone, or cell phones.", "cell-phone cell-phone"),
        ("A dog-friendly man-made beach.", ""),
        ("dog", "dog"),
        ("", ""),
    ],
)
def test_each_rule_on_a_caption(vocabulary: ObjectVocabulary, caption: str, objects: str) -> None:
    assert vocabulary.mentions(caption) == tuple(name.replace("-", " ") for name in objects.split())


@pytest.mark.parametrize(
    ("plurals", "singulars"),
    [
        ("dogs buses horses houses vases boxes benches brushes", "dog bus horse house vase box bench brush"),
        ("puppies movies ties potatoes shoes canoes glasses", "puppy movie tie potato shoe canoe glass"),
        ("women policemen children mice geese feet leaves", "woman policeman child mouse goose foot leaf"),
        ("gloves stoves wolves oxen minibuses corgis magpies", "glove stove wolf ox minibus corgi magpie"),
        ("knives pocketknives wives olives zebus broccolis", "knife pocketknife wife olive zebu broccoli"),
        ("bus glass tennis cactus gas lens sheep broccoli is", "bus glass tennis cactus gas lens sheep broccoli is"),
    ],
)
def test_singular(plurals: str, singulars: str) -> None:
    assert [singular(word) for word in plurals.split()] == singulars.split()


CAPTIONS = [
    "A man, a woman and a dog on a chair.",  # person person dog chair: dog is wrong, chair is in a reference
    "Two dogs. A dog is beside a knife.",  # dog dog knife: all right but the knife
    "A blue sky over the sea.",
    "A fast train.",  # wrong, and three words or fewer
]
TRUTH = [["person"], ["dog", "man"], [], {"toilet"}]
REFERENCES = [["A man sits on a seat."], ["A puppy."], [], ["Nothing", "A toilet"]]


def test_scores_of_captions_counted_by_hand(vocabulary: ObjectVocabulary) -> None:
    found = chair(CAPTIONS, TRUTH, vocabulary, REFERENCES)
    assert found.chair_i.value == 3 / 8
    assert found.chair_s.value == 3 / 4
    assert found.recall.value == 3 / 5  # of person, chair; dog, person; toilet
    assert (found.objects.value, found.length.value) == (8 / 4, (10 + 8 + 6 + 3) / 4)
    assert [e.count for e in found.metrics.values()] == [3, 4, 3, 4, 4]
    assert [c.hallucinated for c in found.captions] == [("dog",), ("knife",), (), ("train",)]
    assert found.captions[0].mentioned == ("person", "person", "dog", "chair")
    assert found.captions[0].surface_words == ("man", "woman", "dog", "chair")
    assert found.captions[0].truth == {"person", "chair"}
    assert found.singulariser == "mmbdhs.evaluation.words.singular"
    without = chair(CAPTIONS, TRUTH, vocabulary)
    assert without.chair_i.value == 4 / 8 and without.recall.value == 2 / 4


def test_object_halbench_counts_surface_words_once_and_short_answers_not(table: Path) -> None:
    captions, truth, _ = zip(
        ("A man and a woman with a dog, a man.", ["person"], "man woman dog: two persons, one wrong dog"),
        ("The dogs see a dog on a train track.", ["dog"], "dog"),
        ("A bow tie, a tie and a bow.", [], "tie bow, both wrong"),
        ("A man's dog", ["toilet"], "three words at white space, so nothing, though an apostrophe separates two"),
        ("A dog - here", ["dog"], "dog: the dash is the fourth word"),
        ("A sports ball, a ball.", ["sports ball"], "ball: the singular of sports ball is not in the table"),
        ("A blue sky over the sea.", [], "nothing"),
        strict=True,
    )
    vocabulary = ObjectVocabulary.from_file(table, OBJECT_HALBENCH_PHRASES)
    found = object_halbench(chair(captions, truth, vocabulary).captions)
    assert found.object_rate.value == 3 / 8
    assert found.response_rate.value == 2 / 5
    assert found.recall.value == 4 / 5  # person; dog; not toilet; dog; sports ball
    assert [e.count for e in found.metrics.values()] == [5, 5, 5]


def test_object_halbench_takes_objects_that_were_listed_elsewhere() -> None:
    mentioned, words = ("person", "person", "person", "dog"), ("man", "woman", "man", "dog")
    listed = CaptionObjects(mentioned, words, frozenset({"dog", "cat"}), 4)
    found = object_halbench([listed, CaptionObjects(("cat",), ("cat",), frozenset(), 3)])
    assert (found.object_rate.value, found.response_rate.value, found.recall.value) == (2 / 3, 1, 1 / 2)
    silent = object_halbench([CaptionObjects((), (), frozenset({"dog"}), 5)])
    assert math.isnan(silent.response_rate.value) and silent.recall.value == 0.0
    with pytest.raises(ValueError, match=r"surface_words: needs one for each of \('person',\), got \(\)"):
        CaptionObjects(("person",), (), frozenset(), 4)


def test_another_singulariser_is_named() -> None:
    vocabulary = ObjectVocabulary.build([["dog"]], singularise=str)
    found = chair(["Dogs and a dog"], [["dog"]], vocabulary)
    assert found.objects.value == 1
    assert found.singulariser == "builtins.str"


def test_what_does_not_fit_is_refused(vocabulary: ObjectVocabulary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary: needs every object of the truth, lacks 'unicorn'"):
        chair(["A dog."], [["unicorn"]], vocabulary)
    with pytest.raises(ValueError, match="truth, reference_captions: need a list for each caption, got 'dog'"):
        chair(["A dog."], ["dog"], vocabulary)
    with pytest.raises(ValueError, match=r"\{'captions': 1, 'truth': 1, 'reference_captions': 2\}"):
        chair(["A dog."], [["dog"]], vocabulary, [[], []])
    with pytest.raises(ValueError, match="synonyms: needs names of one object, 'Dogs' names 'animal' and 'dog'"):
        ObjectVocabulary.build([["dog"], ["animal", "Dogs"]])
    (tmp_path / "synonyms.txt").write_text("dog,, puppy\n", encoding="utf-8")
    with pytest.raises(ValueError, match="needs names separated by commas, got the line 'dog,, puppy'"):
        ObjectVocabulary.from_file(tmp_path / "synonyms.txt")


def test_coco_annotations_are_read(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 7}, {"id": 9}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": c} for c in (1, 1, 18)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(instances), encoding="utf-8")
    assert read_coco_objects(path) == {7: {"person", "dog"}, 9: set()}
    instances["annotations"] = [{"image_id": 9, "caption": "A dog."}]
    path.write_text(json.dumps(instances), encoding="utf-8")
    assert read_coco_captions(path) == {7: [], 9: ["A dog."]}
    instances["annotations"] = [{"image_id": 9, "category_id": 99}]
    path.write_text(json.dumps(instances), encoding="utf-8")
    with pytest.raises(ValueError, match=r"needs a category for every annotation, lacks \[99\]"):
        read_coco_objects(path)
    path.write_text(json.dumps({"images": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"needs an object with images, annotations, categories, got \['images'\]"):
        read_coco_objects(path)
