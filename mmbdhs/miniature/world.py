"""A small world of drawn scenes whose every fact is known: the ground truth behind the miniature.

An example is an address: (world, index, seed) always gives the same scene, picture and words. In the worlds
`train` and `prior` scenes favour their typical objects and objects their typical colours; in `uniform`,
`validation` and `balanced` everything is drawn evenly, so a model that trusts its priors errs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from mmbdhs.miniature.kinds import BACKDROPS, COLOURS, KINDS, SCENES, SHAPES, TYPICAL_COLOUR, TYPICAL_KINDS

T = TypeVar("T")

WORLDS = {"train": True, "prior": True, "uniform": False, "validation": False, "balanced": False}
"""Every world's name, and whether its scenes follow the priors."""

TYPICAL_KIND_SHARE = 0.75
TYPICAL_COLOUR_SHARE = 0.7
SIDE = 96
CELL = SIDE // 3
_SCALE = 2  # drawn at twice the size and averaged down, for smooth edges

_ROWS = ("top", "center", "bottom")
_COLUMNS = ("left", "center", "right")


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its kind, its colour, and its cell 0 … 8 of the 3×3 grid, row by row."""

    kind: str
    colour: str
    cell: int

    @property
    def place(self) -> str:
        """The cell in words, such as "top left" or "center"."""
        row, column = _ROWS[self.cell // 3], _COLUMNS[self.cell % 3]
        return row if row == column else f"{row} {column}"


@dataclass(frozen=True)
class Scene:
    """Ground truth of one picture: its name, its objects (no kind twice), and the address it was drawn from."""

    name: str
    things: tuple[Thing, ...]
    world: str = "balanced"
    index: int = 0
    seed: int = 0

    def find(self, kind: str) -> Thing | None:
        """The object of this kind, or None."""
        return next((thing for thing in self.things if thing.kind == kind), None)

    @property
    def absent_typical(self) -> tuple[str, ...]:
        """Kinds one would expect in such a scene that are not in it."""
        return tuple(kind for kind in TYPICAL_KINDS[self.name] if self.find(kind) is None)


def generator(world: str, index: int, seed: int, purpose: str) -> np.random.Generator:
    """The random numbers that belong to one purpose of one example, whatever was drawn before."""
    if world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)}, got {world!r}")
    address = [seed, list(WORLDS).index(world), index, *purpose.encode()]
    return np.random.default_rng(address)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One element of a sequence, all equally likely."""
    return options[int(rng.integers(len(options)))]


def make_scene(world: str, index: int, seed: int = 0) -> Scene:
    """Draw the scene at an address.

    world: a key of `WORLDS`.
    index: number of the example in its world, from 0.
    seed: another seed, another set of examples.

    Raises ValueError for an unknown world.
    """
    rng = generator(world, index, seed, "scene")
    name = pick(rng, SCENES)
    kinds = _draw_kinds(rng, name, int(rng.integers(4, 7)), WORLDS[world])
    cells = rng.permutation(9)[: len(kinds)].tolist()
    colours = [_draw_colour(rng, kind, WORLDS[world]) for kind in kinds]
    return Scene(name, tuple(map(Thing, kinds, colours, cells)), world, index, seed)


def _draw_kinds(rng: np.random.Generator, name: str, count: int, follow_prior: bool) -> list[str]:
    kinds: list[str] = []
    while len(kinds) < count:
        typical = follow_prior and rng.random() < TYPICAL_KIND_SHARE
        options = [kind for kind in (TYPICAL_KINDS[name] if typical else KINDS) if kind not in kinds]
        if options:
            kinds.append(pick(rng, options))
    return kinds


def _draw_colour(rng: np.random.Generator, kind: str, follow_prior: bool) -> str:
    if follow_prior and rng.random() < TYPICAL_COLOUR_SHARE:
        return TYPICAL_COLOUR[kind]
    return pick(rng, tuple(COLOURS))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, 96×96 pixels, with jitter, partial occluders and noise."""
    rng = generator(scene.world, scene.index, scene.seed, "picture")
    image = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE))
    draw = ImageDraw.Draw(image)
    _draw_backdrop(draw, scene.name, rng)
    for thing, box in zip(scene.things, boxes(scene), strict=True):
        _draw_thing(draw, thing, box, BACKDROPS[scene.name].ground, rng)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0.0, 6.0, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Bounding boxes (left, top, right, bottom) in pixels, in the order of `scene.things`."""
    rng = generator(scene.world, scene.index, scene.seed, "boxes")
    found = []
    for thing in scene.things:
        side = rng.uniform(26.0, 30.0)
        left, top = (CELL * k + (CELL - side) / 2 + rng.uniform(-1.0, 1.0) for k in (thing.cell % 3, thing.cell // 3))
        found.append((left, top, left + side, top + side))
    return found


def _draw_backdrop(draw: ImageDraw.ImageDraw, name: str, rng: np.random.Generator) -> None:
    backdrop, side = BACKDROPS[name], SIDE * _SCALE
    shift = rng.integers(-8, 9, 3)
    ground, figure = (tuple(int(v) for v in np.add(c, shift)) for c in (backdrop.ground, backdrop.figure))
    draw.rectangle((0, 0, side, side), fill=ground)
    phase = int(rng.integers(0, 24))
    steps = range(-phase, side, 24)
    if backdrop.pattern == "horizon":
        draw.rectangle((0, side // 2 - 24 + 2 * phase, side, side), fill=figure)
    elif backdrop.pattern == "rows":
        for y in steps:
            draw.rectangle((0, y, side, y + 11), fill=figure)
    elif backdrop.pattern == "columns":
        for x in steps:
            draw.rectangle((x, 0, x + 11, side), fill=figure)
    elif backdrop.pattern == "checks":
        for k, y in enumerate(range(-phase, side, 12)):
            for x in range(-phase + 12 * (k % 2), side, 24):
                draw.rectangle((x, y, x + 11, y + 11), fill=figure)
    else:
        for y in steps:
            for x in steps:
                draw.ellipse((x, y, x + 10, y + 10), fill=figure)


def _shades(colour: str, background: tuple[int, int, int], rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    fill = tuple(int(v) for v in np.clip(np.add(COLOURS[colour], rng.integers(-10, 11, 3)), 0, 255))
    ink = (120, 120, 120) if colour == "black" else (60, 60, 66)
    return {"fill": fill, "ink": ink, "tint": tuple(int(v * 0.8) for v in fill), "hole": background}


def _draw_thing(draw: Any, thing: Thing, box: Any, background: Any, rng: np.random.Generator) -> None:
    left, top, right, bottom = (v * _SCALE for v in box)
    size = np.array([right - left, bottom - top])
    shades = _shades(thing.colour, background, rng)
    for operation, shade, coordinates in SHAPES[thing.kind]:
        points = np.array([left, top]) + np.reshape(coordinates, (-1, 2)) * size
        flat = [float(v) for v in points.ravel()]
        if operation == "ellipse":
            draw.ellipse(flat, fill=shades[shade])
        elif operation == "half":
            draw.pieslice(flat, 180, 360, fill=shades[shade])
        elif operation == "polygon":
            draw.polygon(flat, fill=shades[shade])
        else:
            draw.line(flat, fill=shades[shade], width=2 * _SCALE)
    if rng.random() < 0.15:
        _occlude(draw, (left, top, right, bottom), background, rng)


def _occlude(draw: Any, box: Any, background: Any, rng: np.random.Generator) -> None:
    """Cover a quarter of the box with an upright or level bar."""
    left, top, right, bottom = box
    start, upright = rng.uniform(0.0, 0.75), rng.random() < 0.5
    if upright:
        x = left + start * (right - left)
        draw.rectangle((x, top, x + 0.25 * (right - left), bottom), fill=background)
    else:
        y = top + start * (bottom - top)
        draw.rectangle((left, y, right, y + 0.25 * (bottom - top)), fill=background)
