"""What kind of character a code point is, in Unicode 15.1, which is the Unicode of llama.cpp's split regexes.

Python's unicodedata and the package regex each follow the Unicode of their own release, so a letter to them may be
nothing at all to llama.cpp. The table here is fixed (data/unicode-15.1.txt, made by fixtures/make/unicode_table.py)
and was compared with llama.cpp's own, src/unicode-data.cpp: equal for all 0x110000 code points.

Left out: case mapping and normalization, which no byte-level tokenizer here needs.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np

from phi4conv.arrays import Bytes

# What the split regexes tell apart: \p{L} in three kinds, \p{M}, \p{N}, \p{P}, \p{S}, \s, and the rest. "other" holds
# controls, format characters, surrogates, private use and whatever Unicode 15.1 assigns to nothing.
CLASSES = ("upper", "lower", "letter", "mark", "number", "punctuation", "symbol", "space", "other")

CLASS_OF_CATEGORY: Mapping[str, str] = {
    "Lu": "upper",
    "Lt": "upper",
    "Ll": "lower",
    "Lm": "letter",
    "Lo": "letter",
    **dict.fromkeys(("Mn", "Mc", "Me"), "mark"),
    **dict.fromkeys(("Nd", "Nl", "No"), "number"),
    **dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"), "punctuation"),
    **dict.fromkeys(("Sm", "Sc", "Sk", "So"), "symbol"),
    **dict.fromkeys(("Zs", "Zl", "Zp"), "space"),
    **dict.fromkeys(("Cc", "Cf", "Cs", "Co", "Cn"), "other"),
}

# White_Space (PropList.txt) is every separator and these controls. U+001C to U+001F, space to Python, are not in it.
SPACE_CONTROLS = (*range(0x09, 0x0E), 0x85)

CODE_POINTS = sys.maxunicode + 1


def class_of(character: str) -> str:
    r"""The class of one character, one of CLASSES.

    >>> [class_of(character) for character in "Aªß٣\u0301_€\u3000\u200b"]
    ['upper', 'letter', 'lower', 'number', 'mark', 'punctuation', 'symbol', 'space', 'other']
    """
    return CLASSES[class_table()[ord(character)]]


@cache
def class_table() -> Bytes:
    """The class of every code point as its place in CLASSES: uint8 (0x110000,), not to be written to."""
    starts, categories = zip(*category_runs(), strict=True)
    kinds = np.array([CLASSES.index(CLASS_OF_CATEGORY[category]) for category in categories], dtype=np.uint8)
    table = np.repeat(kinds, np.diff([*starts, CODE_POINTS]))
    table[list(SPACE_CONTROLS)] = CLASSES.index("space")
    table.setflags(write=False)
    return table


def category_runs() -> list[tuple[int, str]]:
    """General categories as runs: the first code point of each, and the category up to the next."""
    lines = (files("phi4conv") / "data" / "unicode-15.1.txt").read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines if not line.startswith("#"))
    return [(int(start, 16), category) for start, category in fields]


def is_assigned(character: str) -> bool:
    r"""Whether Unicode 15.1 has given the code point to anything.

    >>> is_assigned("A"), is_assigned("\U00010d4e")
    (True, False)
    """
    starts, categories = run_columns()
    return categories[bisect_right(starts, ord(character)) - 1] != "Cn"


@cache
def run_columns() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The runs as two columns: first code points and categories."""
    starts, categories = zip(*category_runs(), strict=True)
    return starts, categories
