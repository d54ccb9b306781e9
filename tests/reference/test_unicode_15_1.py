from __future__ import annotations

import hashlib
import sys
from itertools import pairwise

import numpy as np
import pytest

from phi4conv.reference.unicode_15_1 import CLASSES, category_runs, class_of, class_table

# llama.cpp's flags for each first letter of a general category (unicode_cpt_flags in unicode.h).
FLAGS = {"N": 0x02, "L": 0x04, "Z": 0x08, "M": 0x10, "P": 0x20, "S": 0x40, "C": 0x80}
UNDEFINED, WHITE_SPACE = 0x01, 0x100

# sha256 of the flags of all code points as llama.cpp's src/unicode-data.cpp has them (October 2026): the category's
# and White_Space's, little-endian 16 bits each.
LLAMA_CPP_FLAGS = "d1352c3154b23d37e6da01e7abdb5083eaee687c4bcb53e4fd068efeee9528fc"


def test_every_code_point_has_the_flags_that_llama_cpp_gives_it() -> None:
    starts, categories = zip(*category_runs(), strict=True)
    flags = [UNDEFINED if category == "Cn" else FLAGS[category[0]] for category in categories]
    table = np.repeat(np.array(flags, dtype="<u2"), np.diff([*starts, 0x110000]))
    table[class_table() == CLASSES.index("space")] |= WHITE_SPACE
    assert hashlib.sha256(table.tobytes()).hexdigest() == LLAMA_CPP_FLAGS


def test_runs_cover_all_code_points_in_order_and_no_two_neighbours_are_alike() -> None:
    runs = category_runs()
    starts = [start for start, _ in runs]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] <= sys.maxunicode
    assert all(one[1] != other[1] for one, other in pairwise(runs))


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("AÄЖΣǅ\U0001d400", "upper"),
        ("zßжſ\ufb00", "lower"),
        ("ªʰא中あ한ก", "letter"),
        ("\u0300\u0903\u20dd\ufe0f", "mark"),
        ("7٣²½Ⅷ①", "number"),
        ("!_«»—。", "punctuation"),
        ("$+^`€©🙂", "symbol"),
        (" \t\r\n\x0b\x0c\x85\xa0\u1680\u2028\u3000", "space"),
        ("\0\x1c\x1f\x7f\xad\u180e\u200b\ufeff\u0378\ud800\ue000\uffff\U0010ffff", "other"),
    ],
)
def test_classes_of_characters(characters: str, expected: str) -> None:
    assert {character: class_of(character) for character in characters} == dict.fromkeys(characters, expected)


def test_what_later_versions_added_is_nothing_yet() -> None:
    # U+1C89 and U+A7CB are capital letters since Unicode 16; U+2FFC, an ideographic symbol, is one of 15.1.
    assert [class_of(character) for character in "\u1c89\ua7cb\u2ffc"] == ["other", "other", "symbol"]


def test_the_table_is_not_to_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        class_table()[65] = 0
