"""Captions, questions and the parser of claims, against hand-worked scenes."""

import pytest

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES, TYPICAL_COLOUR, TYPICAL_KINDS
from mmbdhs.miniature.language import (
    CLEAN,
    Mention,
    Noise,
    absent_kinds,
    caption,
    colour_question,
    mentions,
    object_question,
    place_question,
    pope_questions,
    questions,
    wrong_mentions,
)
from mmbdhs.miniature.world import Scene, Thing, make_scene

BEACH = Scene("beach", (Thing("boat", "red", 0), Thing("apple", "green", 4), Thing("fish", "orange", 8)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The banana is yellow.", [Mention("banana", "yellow")]),
        ("The image shows an office.", [Mention("office", topic="scene")]),
        ("The boat is in the top left.", [Mention("boat", place="top left")]),
        ("The boat is in the center.", [Mention("boat", place="center")]),
        ("The boat is in the center left. It is red.", [Mention("boat", place="center left")]),
        ("Yes, there is an apple in the image.", [Mention("apple")]),
        ("No, there is no apple in the image.", [Mention("apple", denied=True)]),
        ("No, there is a cat and no hat.", [Mention("cat"), Mention("hat", denied=True)]),
        ("The cat is the cup is blue.", [Mention("cat"), Mention("cup", "blue")]),
        ("The cat is. The cup is blue.", [Mention("cat"), Mention("cup", "blue")]),
        ("Nothing of the kind. Blue, red.", []),
        ("Bananas and catalogues are no objects.", []),
        ("", []),
    ],
)
def test_mentions(text, expected):
    assert mentions(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The image shows a beach. The boat is red. The apple is green.", []),
        ("The image shows a park. The boat is white.", ["scene", "colour"]),
        ("The hat is black. The fish is orange.", ["object"]),
        ("The boat is in the bottom right. The apple is in the center.", ["place"]),
        ("No, there is no boat in the image.", ["denial"]),
        ("No, there is no hat in the image.", []),
        ("Yes, there is a hat in the image.", ["object"]),
        ("The boat is blue in the center.", ["colour", "place"]),
    ],
)
def test_wrong_mentions(text, expected):
    assert [wrong.error for wrong in wrong_mentions(text, BEACH)] == expected


@pytest.mark.parametrize("world", ["train", "balanced"])
def test_clean_words_are_true_and_well_formed(world):
    for index in range(300):
        scene = make_scene(world, index)
        text = caption(scene)
        said = [m for m in mentions(text) if m.topic == "object"]
        assert 4 <= text.count(".") <= 6 and len(said) == text.count(".") - 1
        assert len({m.kind for m in said}) == len(said) and all(m.colour for m in said)
        answers = [q.answer for q in questions(scene)] + [q.answer for q in pope_questions(scene)]
        answers += [place_question(t).answer for t in scene.things]
        answers += [colour_question(t.kind, t.colour).answer for t in scene.things]
        assert not wrong_mentions(" ".join([text, *answers]), scene)


def test_a_thorough_caption_names_every_object():
    for index in range(100):
        scene = make_scene("balanced", index)
        said = [mention.kind for mention in mentions(caption(scene, thorough=True)) if mention.topic == "object"]
        assert sorted(said) == sorted(thing.kind for thing in scene.things)
        noisy = {mention.kind for mention in mentions(caption(scene, Noise(), thorough=True))}
        assert {thing.kind for thing in scene.things} <= noisy


def test_captions_vary_but_repeat():
    scene = make_scene("train", 7)
    assert caption(scene) == caption(scene)
    assert len({caption(scene, variant=v) for v in range(10)}) > 5


def test_noise_is_only_what_it_says_it_is():
    for index in range(300):
        scene = make_scene("balanced", index)
        for wrong in wrong_mentions(caption(scene, Noise()), scene):
            kind = wrong.mention.kind
            assert wrong.mention.colour == TYPICAL_COLOUR[kind]
            assert wrong.error == "colour" or kind in TYPICAL_KINDS[scene.name]


def test_noise_rates():
    """Misled answers and told colours against their binomial law: bounds of 5 standard deviations, 6e-7 each."""
    scenes = [make_scene("balanced", i) for i in range(4000)]
    noisy = [questions(scene, Noise()) for scene in scenes]
    affirmed = [q[1].affirmed for s, q in zip(scenes, noisy, strict=True) if q[1].kind in s.absent_typical]
    untypical = [
        q[2].answer.split()[-1][:-1] != s.find(q[2].kind).colour
        for s, q in zip(scenes, noisy, strict=True)
        if s.find(q[2].kind).colour != TYPICAL_COLOUR[q[2].kind]
    ]
    denials = [questions(scene, Noise(denial=0.4)) for scene in scenes]
    denied = [not q[0].affirmed for q in denials]
    for outcomes, p in ((affirmed, Noise().answer), (untypical, Noise().colour), (denied, 0.4)):
        n = len(outcomes)
        assert n > 2000
        assert abs(sum(outcomes) - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    assert all(one[1:] == other[1:] for one, other in zip(noisy, denials, strict=True))
    assert not any(q[1].affirmed for q in (questions(scene, CLEAN) for scene in scenes))


@pytest.mark.parametrize("negatives", ["random", "popular", "adversarial"])
def test_pope_questions_alternate_and_are_true(negatives):
    for index in range(100):
        scene = make_scene("prior", index)
        asked = pope_questions(scene, negatives)
        assert [q.affirmed for q in asked] == [True, False, True, False]
        assert all(q.affirmed == (scene.find(q.kind) is not None) for q in asked)
        if negatives == "adversarial" and scene.absent_typical:
            assert all(q.kind in scene.absent_typical for q in asked if not q.affirmed)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match="random, popular or adversarial, got 'easy'"):
        absent_kinds(BEACH, "easy")


def test_articles_and_sentences():
    assert object_question("umbrella", True).answer == "Yes, there is an umbrella in the image."
    assert object_question("cat", False).answer == "No, there is no cat in the image."
    assert object_question("apple", False).text == "Is there an apple in the image?"


def test_tables_fit_each_other():
    assert len(SCENES) >= 16 and len(KINDS) >= 16 and len(COLOURS) == 8
    assert all(set(kinds) <= set(KINDS) and len(set(kinds)) == 5 for kinds in TYPICAL_KINDS.values())
    assert set(TYPICAL_COLOUR.values()) == set(COLOURS)
    assert all(any(kind in kinds for kinds in TYPICAL_KINDS.values()) for kind in KINDS)
