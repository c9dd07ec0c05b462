"""The tables of the world: colours, object kinds with their typical colours and shapes, scenes with theirs."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (208, 38, 38),
    "orange": (242, 132, 20),
    "yellow": (246, 222, 44),
    "green": (38, 150, 56),
    "blue": (44, 84, 214),
    "purple": (142, 52, 182),
    "white": (250, 250, 250),
    "black": (26, 26, 30),
}

TYPICAL_COLOUR = {
    "apple": "red",
    "ball": "orange",
    "banana": "yellow",
    "bird": "blue",
    "boat": "white",
    "book": "blue",
    "bottle": "green",
    "car": "red",
    "cat": "black",
    "cup": "white",
    "fish": "orange",
    "flower": "purple",
    "hat": "black",
    "house": "red",
    "key": "yellow",
    "kite": "purple",
    "lamp": "yellow",
    "shoe": "black",
    "tree": "green",
    "umbrella": "blue",
}
KINDS = tuple(TYPICAL_COLOUR)

TYPICAL_KINDS = {
    "beach": ("ball", "boat", "fish", "hat", "umbrella"),
    "bedroom": ("book", "cat", "hat", "lamp", "shoe"),
    "cafe": ("banana", "book", "bottle", "cup", "umbrella"),
    "classroom": ("apple", "ball", "book", "cup", "key"),
    "garage": ("ball", "bottle", "car", "key", "shoe"),
    "garden": ("bird", "cat", "flower", "house", "tree"),
    "hallway": ("hat", "key", "lamp", "shoe", "umbrella"),
    "harbour": ("bird", "boat", "car", "fish", "lamp"),
    "kitchen": ("apple", "banana", "bottle", "cup", "lamp"),
    "lake": ("bird", "boat", "fish", "house", "tree"),
    "market": ("apple", "banana", "bottle", "fish", "flower"),
    "meadow": ("bird", "flower", "house", "kite", "tree"),
    "office": ("book", "cup", "key", "lamp", "umbrella"),
    "park": ("ball", "bird", "flower", "kite", "tree"),
    "playground": ("ball", "hat", "kite", "shoe", "tree"),
    "street": ("car", "cat", "house", "lamp", "tree"),
}
SCENES = tuple(TYPICAL_KINDS)


@dataclass(frozen=True)
class Backdrop:
    """Two muted colours and the pattern that divides them."""

    ground: tuple[int, int, int]
    figure: tuple[int, int, int]
    pattern: str


BACKDROPS = {
    "beach": Backdrop((168, 200, 214), (214, 196, 156), "horizon"),
    "bedroom": Backdrop((196, 172, 178), (178, 152, 160), "columns"),
    "cafe": Backdrop((176, 146, 120), (196, 168, 142), "checks"),
    "classroom": Backdrop((120, 146, 128), (160, 140, 112), "horizon"),
    "garage": Backdrop((132, 132, 138), (150, 150, 156), "rows"),
    "garden": Backdrop((150, 182, 132), (134, 164, 116), "dots"),
    "hallway": Backdrop((206, 194, 168), (184, 168, 140), "columns"),
    "harbour": Backdrop((140, 158, 176), (116, 138, 160), "rows"),
    "kitchen": Backdrop((204, 208, 204), (180, 188, 188), "checks"),
    "lake": Backdrop((150, 184, 190), (112, 152, 170), "horizon"),
    "market": Backdrop((206, 176, 140), (182, 150, 116), "rows"),
    "meadow": Backdrop((176, 206, 214), (158, 186, 120), "horizon"),
    "office": Backdrop((168, 170, 186), (150, 152, 172), "checks"),
    "park": Backdrop((142, 176, 140), (168, 160, 128), "rows"),
    "playground": Backdrop((190, 160, 126), (206, 182, 150), "dots"),
    "street": Backdrop((158, 158, 160), (112, 112, 118), "horizon"),
}

# A shape is drawn stroke by stroke in the unit square: (operation, shade, coordinates x, y, …).
# Shades: "fill" is the object's colour, "ink" contrasts with it, "tint" is a darker fill.
Stroke = tuple[str, str, tuple[float, ...]]

SHAPES: dict[str, tuple[Stroke, ...]] = {
    "apple": (
        ("ellipse", "fill", (0.08, 0.26, 0.60, 0.96)),
        ("ellipse", "fill", (0.40, 0.26, 0.92, 0.96)),
        ("line", "ink", (0.50, 0.34, 0.60, 0.04)),
    ),
    "ball": (
        ("ellipse", "fill", (0.06, 0.06, 0.94, 0.94)),
        ("line", "ink", (0.50, 0.06, 0.50, 0.94)),
        ("line", "ink", (0.06, 0.50, 0.94, 0.50)),
    ),
    "banana": (
        (
            "polygon",
            "fill",
            (0.80, 0.04, 0.96, 0.10, 0.92, 0.56, 0.64, 0.88, 0.20, 0.94, 0.04, 0.82, 0.44, 0.68, 0.70, 0.40),
        ),
    ),
    "bird": (
        ("ellipse", "fill", (0.22, 0.38, 0.82, 0.84)),
        ("ellipse", "fill", (0.62, 0.16, 0.94, 0.48)),
        ("polygon", "fill", (0.00, 0.30, 0.34, 0.50, 0.28, 0.68)),
        ("polygon", "ink", (0.92, 0.28, 1.00, 0.34, 0.92, 0.38)),
        ("line", "ink", (0.44, 0.82, 0.44, 1.00)),
        ("line", "ink", (0.60, 0.82, 0.60, 1.00)),
    ),
    "boat": (
        ("polygon", "fill", (0.00, 0.64, 1.00, 0.64, 0.80, 0.94, 0.20, 0.94)),
        ("line", "ink", (0.48, 0.04, 0.48, 0.64)),
        ("polygon", "fill", (0.54, 0.06, 0.90, 0.56, 0.54, 0.56)),
    ),
    "book": (
        ("polygon", "fill", (0.02, 0.18, 0.50, 0.30, 0.50, 0.92, 0.02, 0.80)),
        ("polygon", "fill", (0.98, 0.18, 0.50, 0.30, 0.50, 0.92, 0.98, 0.80)),
        ("line", "ink", (0.50, 0.30, 0.50, 0.92)),
    ),
    "bottle": (
        (
            "polygon",
            "fill",
            (0.40, 0.02, 0.60, 0.02, 0.60, 0.28, 0.74, 0.44, 0.74, 0.98, 0.26, 0.98, 0.26, 0.44, 0.40, 0.28),
        ),
        ("polygon", "tint", (0.26, 0.58, 0.74, 0.58, 0.74, 0.78, 0.26, 0.78)),
    ),
    "car": (
        (
            "polygon",
            "fill",
            (0.00, 0.50, 0.22, 0.46, 0.36, 0.22, 0.70, 0.22, 0.84, 0.46, 1.00, 0.52, 1.00, 0.76, 0.00, 0.76),
        ),
        ("ellipse", "ink", (0.12, 0.64, 0.36, 0.90)),
        ("ellipse", "ink", (0.64, 0.64, 0.88, 0.90)),
    ),
    "cat": (
        ("polygon", "fill", (0.10, 0.04, 0.44, 0.34, 0.12, 0.56)),
        ("polygon", "fill", (0.90, 0.04, 0.56, 0.34, 0.88, 0.56)),
        ("ellipse", "fill", (0.08, 0.24, 0.92, 0.96)),
        ("ellipse", "ink", (0.26, 0.46, 0.40, 0.62)),
        ("ellipse", "ink", (0.60, 0.46, 0.74, 0.62)),
    ),
    "cup": (
        ("ellipse", "fill", (0.56, 0.34, 0.98, 0.78)),
        ("ellipse", "hole", (0.66, 0.44, 0.88, 0.68)),
        ("polygon", "fill", (0.06, 0.20, 0.74, 0.20, 0.66, 0.94, 0.14, 0.94)),
        ("ellipse", "tint", (0.06, 0.12, 0.74, 0.30)),
    ),
    "fish": (
        ("ellipse", "fill", (0.22, 0.24, 1.00, 0.78)),
        ("polygon", "fill", (0.34, 0.50, 0.00, 0.20, 0.00, 0.82)),
        ("ellipse", "ink", (0.76, 0.38, 0.86, 0.50)),
    ),
    "flower": (
        ("line", "ink", (0.50, 0.60, 0.50, 1.00)),
        ("ellipse", "fill", (0.34, 0.00, 0.66, 0.34)),
        ("ellipse", "fill", (0.34, 0.42, 0.66, 0.76)),
        ("ellipse", "fill", (0.12, 0.20, 0.46, 0.54)),
        ("ellipse", "fill", (0.54, 0.20, 0.88, 0.54)),
        ("ellipse", "ink", (0.40, 0.27, 0.60, 0.47)),
    ),
    "hat": (
        ("ellipse", "fill", (0.00, 0.60, 1.00, 0.88)),
        ("polygon", "fill", (0.26, 0.14, 0.74, 0.14, 0.78, 0.72, 0.22, 0.72)),
        ("polygon", "tint", (0.24, 0.52, 0.76, 0.52, 0.78, 0.66, 0.22, 0.66)),
    ),
    "house": (
        ("polygon", "tint", (0.00, 0.46, 0.50, 0.04, 1.00, 0.46)),
        ("polygon", "fill", (0.12, 0.46, 0.88, 0.46, 0.88, 0.96, 0.12, 0.96)),
        ("polygon", "ink", (0.42, 0.64, 0.60, 0.64, 0.60, 0.96, 0.42, 0.96)),
    ),
    "key": (
        ("ellipse", "fill", (0.00, 0.24, 0.44, 0.68)),
        ("ellipse", "hole", (0.13, 0.37, 0.31, 0.55)),
        (
            "polygon",
            "fill",
            (
                0.40,
                0.40,
                1.00,
                0.40,
                1.00,
                0.70,
                0.90,
                0.70,
                0.90,
                0.52,
                0.80,
                0.52,
                0.80,
                0.66,
                0.70,
                0.66,
                0.70,
                0.52,
                0.40,
                0.52,
            ),
        ),
    ),
    "kite": (
        ("line", "ink", (0.46, 0.70, 0.30, 0.84, 0.52, 0.90, 0.36, 1.00)),
        ("polygon", "fill", (0.50, 0.00, 0.86, 0.32, 0.46, 0.76, 0.14, 0.32)),
        ("line", "ink", (0.14, 0.32, 0.86, 0.32)),
        ("line", "ink", (0.50, 0.00, 0.46, 0.76)),
    ),
    "lamp": (
        ("polygon", "fill", (0.32, 0.02, 0.68, 0.02, 0.94, 0.46, 0.06, 0.46)),
        ("line", "ink", (0.50, 0.46, 0.50, 0.90)),
        ("ellipse", "fill", (0.24, 0.84, 0.76, 1.00)),
    ),
    "shoe": (
        ("polygon", "fill", (0.04, 0.18, 0.40, 0.18, 0.46, 0.46, 0.92, 0.58, 1.00, 0.82, 0.04, 0.82)),
        ("polygon", "ink", (0.04, 0.82, 1.00, 0.82, 1.00, 0.92, 0.04, 0.92)),
    ),
    "tree": (
        ("polygon", "ink", (0.42, 0.76, 0.58, 0.76, 0.58, 1.00, 0.42, 1.00)),
        ("polygon", "fill", (0.50, 0.00, 0.82, 0.38, 0.18, 0.38)),
        ("polygon", "fill", (0.50, 0.20, 0.94, 0.78, 0.06, 0.78)),
    ),
    "umbrella": (
        ("half", "fill", (0.00, 0.06, 1.00, 1.00)),
        ("line", "ink", (0.50, 0.54, 0.50, 0.92, 0.64, 0.98, 0.70, 0.86)),
    ),
}
