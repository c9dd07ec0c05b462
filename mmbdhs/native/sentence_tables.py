"""The characters and words that the sentence rule knows, for both of its twins.

`sentence_rule` reads them from here. csrc/text/write_tables.py writes them into a C++ header when the extension is
built, so this file imports nothing but the standard library. Characters are sets of code points.
"""

from __future__ import annotations

from itertools import chain


def _codes(characters: str, *ranges: tuple[int, int]) -> frozenset[int]:
    """The code points of single characters and of ranges (first, last)."""
    return frozenset(chain(map(ord, characters), *(range(first, last + 1) for first, last in ranges)))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BREAKS = _codes("\x85\u2028\u2029", (0xA, 0xD))
# Unicode's White_Space.
SPACES = BREAKS | _codes("\t \xa0\u1680\u202f\u205f\u3000", (0x2000, 0x200A))
# Unicode's Default_Ignorable_Code_Point: direction marks, joiners, variation selectors and other marks without width.
INVISIBLE = _codes(
    "\xad\u034f\u061c\u3164\ufeff\uffa0",
    *((0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F)),
    *((0xFE00, 0xFE0F), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
# Stops that end a sentence whatever comes next: Unicode's Sentence_Break=STerm without the marks that stand in Latin
# text, and the full-width dot.
HARD_STOPS = _codes(
    "．",
    *((0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702), (0x7F9, 0x7F9), (0x837, 0x837)),
    *((0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B), (0x1362, 0x1362), (0x1367, 0x1368)),
    *((0x166E, 0x166E), (0x1735, 0x1736), (0x17D4, 0x17D5), (0x1803, 0x1803), (0x1809, 0x1809), (0x1944, 0x1945)),
    *((0x1AA8, 0x1AAB), (0x1B4E, 0x1B4F), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7F), (0x1C3B, 0x1C3C)),
    *((0x1C7E, 0x1C7F), (0x2CF9, 0x2CFB), (0x2E60, 0x2E61), (0x3002, 0x3002), (0xA4FF, 0xA4FF), (0xA60E, 0xA60F)),
    *((0xA6F3, 0xA6F3), (0xA6F7, 0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF), (0xA92F, 0xA92F), (0xA9C8, 0xA9C9)),
    *((0xAA5D, 0xAA5F), (0xAAF0, 0xAAF1), (0xABEB, 0xABEB), (0xFE12, 0xFE12), (0xFE15, 0xFE16), (0xFE56, 0xFE57)),
    *((0xFF01, 0xFF01), (0xFF1F, 0xFF1F), (0xFF61, 0xFF61), (0x10A56, 0x10A57), (0x10F55, 0x10F59)),
    *((0x10F86, 0x10F89), (0x11047, 0x11048), (0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6)),
    *((0x111CD, 0x111CD), (0x111DE, 0x111DF), (0x11238, 0x11239), (0x1123B, 0x1123C), (0x112A9, 0x112A9)),
    *((0x113D4, 0x113D5), (0x1144B, 0x1144C), (0x115C2, 0x115C3), (0x115C9, 0x115D7), (0x11641, 0x11642)),
    *((0x1173C, 0x1173E), (0x11944, 0x11944), (0x11946, 0x11946), (0x11A42, 0x11A43), (0x11A9B, 0x11A9C)),
    *((0x11C41, 0x11C42), (0x11EF7, 0x11EF8), (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), (0x16AF5, 0x16AF5)),
    *((0x16B37, 0x16B38), (0x16B44, 0x16B44), (0x16D6E, 0x16D6F), (0x16E98, 0x16E98), (0x1BC9F, 0x1BC9F)),
    (0x1DA88, 0x1DA88),
)
STOPS = _codes(".!?…‼‽⁇⁈⁉⸮⸼⹓⹔") | HARD_STOPS
CLOSERS = _codes("\"')]}*_”’»」』）】")
COMMAS = _codes(",;،؛、，；")
# ASCII, Latin-1, and the basic Greek and Cyrillic letters.
LOWER = _codes("", (0x61, 0x7A), (0xDF, 0xF6), (0xF8, 0xFF), (0x3AC, 0x3CE), (0x430, 0x45F))
# Every character is part of a word, except these marks and ranges of punctuation, spaces and symbols.
NON_WORD = (STOPS | INVISIBLE | COMMAS) | _codes(
    "`\xd7\xf7\u1680",
    *((0x0, 0x2F), (0x3A, 0x40), (0x5B, 0x5E), (0x7B, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF)),
    *((0x2000, 0x206F), (0x2190, 0x2BFF), (0x2E00, 0x2E7F), (0x3000, 0x303F), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F)),
    *((0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0x1F000, 0x1FAFF)),
)
# What may come before the number of a list item: at the start of its sentence; elsewhere directly before it; or with a
# gap between the two, for 10:30 and 1,000 hold no list marks.
LINE_LEAD = _codes("*#>(-|+[•–·‣◦")
LIST_OPENERS = _codes("(：，；（、")
SPACED_LIST_OPENERS = _codes(":,;")
# A line of at least three of these characters and spaces is a rule, the fence of a block or the head of a table.
MARKS = _codes("-*_=~`|:+#")
FENCES = _codes("`~")

# A tag is an opening bracket, perhaps "/", a letter or "|", at most TAG_BYTES more bytes, and the closing bracket; or
# one of WHOLE_TAGS as it is written here.
TAG_BRACKETS = {"<": ">", "◁": "▷"}
TAG_BYTES = 64
WHOLE_TAGS = ("[THINK]", "[/THINK]")
TAG_OPENERS = _codes("".join({*TAG_BRACKETS, *(tag[0] for tag in WHOLE_TAGS)}))

KINDS = {
    "SPACE": SPACES,
    "BREAK": BREAKS,
    "INVISIBLE": INVISIBLE,
    "STOP": STOPS,
    "HARD_STOP": HARD_STOPS,
    "CLOSER": CLOSERS,
    "COMMA": COMMAS,
    "LOWER": LOWER,
    "NON_WORD": NON_WORD,
    "LINE_LEAD": LINE_LEAD,
    "LIST_OPENER": LIST_OPENERS,
    "SPACED_LIST_OPENER": SPACED_LIST_OPENERS,
    "TAG_OPENER": TAG_OPENERS,
    "MARK": MARKS,
    "FENCE": FENCES,
}

# Abbreviations after which a single dot never ends a sentence.
NEVER_FINAL = _words(
    "Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Col Capt Lt Sgt Cpl Pvt Maj Adm Rev Hon Sen Rep Gov Messrs Mme Mlle "
    "Sr Sra Srta Dra Sres vs cf approx ca viz resp fig figs Fig Figs eq eqs Eq Eqs vol Vol pp sq"
)
# Abbreviations that often stand at the end of a sentence: the next character decides.
OFTEN_FINAL = _words(
    "etc Inc inc Ltd ltd Co Corp corp Bros Jr al a.m p.m A.M P.M ft in lb lbs oz yd yds mi cm mm km kg tsp tbsp "
    "hr hrs min mins Ave Blvd Rd Ln Hwy Pkwy Apt Bldg Dept"
)
# Words after which a dot belongs to the number that follows; without a number it is an ordinary stop.
NUMBERED = _words(
    "No no NO Nos nos Nr nr Art Sec sec Ch ch p Pt pt Est est Tel tel Hwy Rte Apt Bldg "
    "ft yd yds lb lbs hr hrs min mins "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)
# The answers of Algorithm 1 and what each is swapped for.
COUNTERPARTS = {b"Yes": b"No", b"yes": b"no", b"No": b"Yes", b"no": b"yes"}
