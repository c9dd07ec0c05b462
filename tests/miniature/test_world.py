"""The world: reproducible, as its priors say, and drawn where its ground truth says."""

import numpy as np
import pytest

from mmbdhs.miniature.kinds import COLOURS, KINDS, TYPICAL_COLOUR, TYPICAL_KINDS
from mmbdhs.miniature.world import CELL, SIDE, WORLDS, Scene, Thing, boxes, make_scene, render


@pytest.mark.parametrize("world", WORLDS)
def test_an_address_is_an_example(world):
    first, again = make_scene(world, 5, seed=3), make_scene(world, 5, seed=3)
    assert first == again
    assert render(first).tobytes() == render(again).tobytes()
    others = [make_scene(world, 6, seed=3), make_scene(world, 5, seed=4)]
    others += [make_scene(w, 5, seed=3) for w in WORLDS if w != world]
    assert all(other.things != first.things for other in others)


def test_scenes_are_well_formed():
    for index in range(300):
        scene = make_scene("train", index)
        assert 4 <= len(scene.things) <= 6
        assert len({t.kind for t in scene.things}) == len({t.cell for t in scene.things}) == len(scene.things)


def test_priors_hold_where_promised_and_nowhere_else():
    """5 standard deviations of a binomial: false alarms below 1e-6."""
    things = {w: [(s, t) for s in (make_scene(w, i) for i in range(1000)) for t in s.things] for w in WORLDS}
    for world, found in things.items():
        typical_colour = sum(t.colour == TYPICAL_COLOUR[t.kind] for _, t in found)
        p = 0.7 + 0.3 / len(COLOURS) if WORLDS[world] else 1 / len(COLOURS)
        assert abs(typical_colour - len(found) * p) < 5 * (len(found) * p * (1 - p)) ** 0.5
        typical_kind = sum(t.kind in TYPICAL_KINDS[s.name] for s, t in found) / len(found)
        assert (typical_kind > 0.7) if WORLDS[world] else (abs(typical_kind - 5 / len(KINDS)) < 0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_drawn_in_their_box_and_colour(kind):
    thing = Thing(kind, "purple", 4)
    empty, full = (np.asarray(render(Scene("office", things)), dtype=int) for things in ((), (thing,)))
    close = np.abs(full - np.array(COLOURS["purple"])).max(-1) < 45
    (left, top, right, bottom) = boxes(Scene("office", (thing,)))[0]
    assert left >= CELL - 1 and right <= 2 * CELL + 1 and top >= CELL - 1 and bottom <= 2 * CELL + 1
    ys, xs = np.nonzero(close)
    assert len(ys) > 60
    assert left - 1 <= xs.min() and xs.max() <= right + 1 and top - 1 <= ys.min() and ys.max() <= bottom + 1
    assert empty.shape == full.shape == (SIDE, SIDE, 3)


def test_places_are_named():
    names = [Thing("cat", "red", cell).place for cell in range(9)]
    assert names[:5] == ["top left", "top center", "top right", "center left", "center"]
    assert len(set(names)) == 9


def test_unknown_world_is_refused():
    with pytest.raises(ValueError, match=r"world must be one of train, .*, got 'moon'"):
        make_scene("moon", 0)
