"""English words and their singular, by rule."""

from __future__ import annotations

import re

# Soft hyphen, zero-width space, joiners, direction marks and byte order mark: no reader sees them inside a word.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_TOKEN = re.compile(r"o['’]clock|[^\W_]+(?:-[^\W_]+)*|[^\w\s]")

_IRREGULAR = {
    "broccolis": "broccoli",
    "calves": "calf",
    "canvases": "canvas",
    "children": "child",
    "corgis": "corgi",
    "feet": "foot",
    "gases": "gas",
    "geese": "goose",
    "grandchildren": "grandchild",
    "halves": "half",
    "hooves": "hoof",
    "leaves": "leaf",
    "lenses": "lens",
    "lives": "life",
    "loaves": "loaf",
    "menus": "menu",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "quizzes": "quiz",
    "scarves": "scarf",
    "shelves": "shelf",
    "skis": "ski",
    "taxis": "taxi",
    "teeth": "tooth",
    "thieves": "thief",
    "wolves": "wolf",
    "zebus": "zebu",
}
_UNCHANGED = frozenset({"abdomen", "canvas", "gas", "lens", "scissors", "series", "species", "specimen"})
# The first ending that fits is replaced.
_RULES = [
    (re.compile(ending), replacement)
    for ending, replacement in (
        (r"(ss|us|is)$", r"\1"),
        (r"men$", "man"),
        (r"(kni|wi)ves$", r"\1fe"),
        (r"^(.|brown|coll|cook|hood|magp|mov|self|smooth|vegg|zomb)ies$", r"\1ie"),
        (r"ies$", "y"),
        (r"(ch|sh|ss|x|zz|[bmprt]us)es$", r"\1"),
        (r"(^can|^h|^t|sh)oes$", r"\1oe"),
        (r"oes$", "o"),
        (r"s$", ""),
    )
]


def tokens(text: str) -> list[str]:
    """Lower-case words and single punctuation marks. A hyphen joins words, an apostrophe separates them, and "o'clock"
    is one word, which is no clock. Characters of no width are left out."""
    return _TOKEN.findall(text.lower().translate(_INVISIBLE))


def singular(word: str) -> str:
    """The singular of a lower-case English noun; a singular noun stays what it is.

    It goes by irregular forms and endings, without a dictionary: an unforeseen irregular noun comes out wrong, but the
    same way each time.
    """
    if len(word) < 3 or word in _UNCHANGED:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, replacement in _RULES:
        if ending.search(word):
            return ending.sub(replacement, word)
    return word
