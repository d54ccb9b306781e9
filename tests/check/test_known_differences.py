"""Differences between Hugging Face and llama.cpp that a right file has: each recognised, and none hiding a fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from gguf import Keys, TokenType
from vocabulary_files import MARKERS, changed, tiny_pairs

from phi4conv.check.comparison import FileSide, Sample
from phi4conv.check.known_differences import NEWER_UNICODE, OWN_REGEX, SPACES, WHITE_SPACE, without_space
from phi4conv.gguf_file.edit import Change, edited
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, text, texts
from phi4conv.hf.source import SourceTokenizer, source_of
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.reference.tokenizer import file_tokenizer
from phi4conv.reference.unicode_15_1 import is_assigned
from phi4conv.vocab import SpecialIds, Vocabulary, byte_alphabet

K = Keys.Tokenizer
END = "<|im_end|>"
BOTH = f"{WHITE_SPACE} and {NEWER_UNICODE}"

# Letters, capitals, digits and marks of Unicode 16 and 17.
NEW_CHARACTERS = (
    "\u1c89\u1c8a\ua7cb\ua7cd\ua7da\ua7dc\U00010d40\U00010d49\U00010d4a\U00016d40\U00016d70\U0001e5d0\U0001e5f1"
)


def vocabulary(pre: str) -> Vocabulary:
    """Every MARKER merged with every byte on both sides: a word's edge beside one of them is seen in the ids."""
    alphabet = byte_alphabet()
    merges = dict.fromkeys([*product(MARKERS, alphabet), *product(alphabet, MARKERS)])
    tokens = [*dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)]), "<|endoftext|>", END, "<|im_sep|>"]
    first = len(tokens) - 3
    return Vocabulary(
        texts=tuple(tokens),
        types=(TokenType.NORMAL,) * first + (TokenType.CONTROL,) * 3,
        merges=tuple(" ".join(merge) for merge in merges),
        pre=pre,
        special=SpecialIds(bos=first, eos=first + 1, eot=first + 1),
    )


def file_with(right: Vocabulary, *changes: MetadataPair) -> GGUFFile:
    """A file with this vocabulary, and then these changes."""
    kept = {key: pair for key, pair in tiny_pairs().items() if not key.startswith("tokenizer.")}
    file = GGUFFile(
        path=Path("a.gguf"),
        version=3,
        byte_order="little",
        alignment=32,
        metadata=dict(changed(kept, *tokenizer_pairs(right))),
        tensors=(),
        data_offset=0,
        file_size=0,
        defects=(),
        header_complete=True,
    )
    return edited(file, [Change(pair.key, pair) for pair in changes])


@cache
def source(pre: str = "dbrx") -> SourceTokenizer:
    return source_of(vocabulary(pre), "a test")


def side(pre: str = "dbrx", *changes: MetadataPair) -> FileSide:
    """A file's tokenizer beside its source."""
    return FileSide(file_tokenizer(file_with(vocabulary(pre), *changes)), source(pre))


@cache
def good(pre: str = "dbrx") -> FileSide:
    return side(pre)


def verdict(content: str, file: FileSide, *, parse_special: bool = True) -> str | None:
    """ "same", the known difference behind a text, or None for a fault."""
    item = Sample("a test", content, parse_special=parse_special)
    (right,) = file.source.encode([content], parse_special=parse_special)
    ids, reason = file.encode(item)
    assert not reason
    return "same" if list(ids) == right else file.explain(item, right)


PLACES: dict[str, Callable[[str], str]] = {
    "before": lambda space: f"x{space}{END}y",
    "behind": lambda space: f"x{END}{space}y",
    "both sides": lambda space: f"x{space}{END}{space}y",
    "alone": lambda space: f"{space}{END}",
    "between two": lambda space: f"{END}{space}<|im_sep|>",
    "with line ends": lambda space: f"x\r\n{space}{END}{space}\ny",
    "among others": lambda space: f"x {space}\t{END}\u3000{space} y",
}


def test_twenty_five_characters_are_white_space() -> None:
    assert len(set(SPACES)) == len(SPACES) == 25


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"U+{ord(space):04X}")
@pytest.mark.parametrize("place", PLACES)
def test_white_space_around_special_tokens_is_known(place: str, space: str) -> None:
    content = PLACES[place](space)
    assert verdict(content, good()) == WHITE_SPACE
    assert verdict(content, good(), parse_special=False) == "same"


@pytest.mark.parametrize("other", ["\x1c", "\x1f", "\u180e", "\u200b", "\u2060", "\ufeff", "\0"])
@pytest.mark.parametrize("place", ["before", "behind", "both sides", "alone", "between two"])
def test_what_looks_like_white_space_is_no_difference(place: str, other: str) -> None:
    assert verdict(PLACES[place](other), good()) == "same"


@pytest.mark.parametrize("content", ["", " ", "x\n\n y", "a<|im_en", f"x{END}y", f"{END}{END}", f"a 1{END}!"])
def test_a_right_text_is_no_difference(content: str) -> None:
    assert verdict(content, good()) == "same"


def known_to_the_source() -> list[str]:
    """Those new characters that the installed tokenizers knows already."""
    known = good().known
    assert known
    return [character for character in NEW_CHARACTERS if known.class_in_source(character) != "other"]


def test_the_new_characters_are_new() -> None:
    assert not any(map(is_assigned, NEW_CHARACTERS))


def test_new_letters_and_digits_are_known_differences() -> None:
    characters = known_to_the_source()
    if not characters:
        pytest.skip("the installed tokenizers knows no Unicode beyond 15.1")
    verdicts = {
        (character, form): verdict(form.format(character), good())
        for character in characters
        for form in ("a{}a", "1{}1", "!{}!", "'{}a", " {}", "{}\n")
    }
    assert set(verdicts.values()) <= {"same", NEWER_UNICODE}
    assert {character for (character, _), each in verdicts.items() if each == NEWER_UNICODE} == set(characters)


def test_two_known_differences_in_one_text_are_both_named() -> None:
    characters = known_to_the_source()
    if not characters:
        pytest.skip("the installed tokenizers knows no Unicode beyond 15.1")
    for character in characters:
        content = f"a{character}a1{character}1 {END} x"
        assert verdict(content, good()) == BOTH


def test_the_class_of_a_character_is_the_sources() -> None:
    known = good().known
    assert known
    classes = {character: known.class_in_source(character) for character in "éЖ中٣²\u3000\u0301€\ue000"}
    assert classes == {
        **dict.fromkeys("éЖ中", "letter"),
        **dict.fromkeys("٣²", "number"),
        "\u3000": "space",
        **dict.fromkeys("\u0301€\ue000", "other"),
    }


# Marks and capitals beyond ASCII, in the neighbourhood of letters that show where a word ends.
BEFORE, BETWEEN, BEHIND = ("a", "A", "é", "É", "中", ""), ("\u0301", "É", "é", "Ǆ", "中\u0301"), ("a", "A", "!")
MARKED = ["".join(parts) for parts in product(BEFORE, BETWEEN, BEHIND)]


def test_gpt_4os_marks_and_capitals_are_a_known_difference() -> None:
    verdicts = {content: verdict(content, good("gpt-4o")) for content in MARKED}
    assert set(verdicts.values()) == {"same", OWN_REGEX}


def test_the_same_texts_show_no_difference_under_dbrx() -> None:
    assert {verdict(content, good()) for content in MARKED} == {"same"}


def test_what_gpt_4o_does_to_a_file_that_should_say_dbrx_is_a_fault() -> None:
    wrong = side("dbrx", text(K.PRE, "gpt-4o"))
    found = {verdict(content, wrong) for content in MARKED}
    assert None in found
    assert OWN_REGEX not in found


def exchanged(one: str, other: str) -> MetadataPair:
    """The merges with two of them exchanged."""
    merges = list(vocabulary("dbrx").merges)
    first, second = merges.index(one), merges.index(other)
    merges[first], merges[second] = merges[second], merges[first]
    return texts(K.MERGES, merges)


# A text that shows the fault, and the file that has it.
FAULTS = {
    "merges exchanged": ("aAa", exchanged("a A", "A a")),
    "another regex": ("123456", text(K.PRE, "qwen2")),
    "another family's regex": ("a'Sa", text(K.PRE, "gpt-2")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_in_a_text_with_known_differences_too(fault: str) -> None:
    telling, change = FAULTS[fault]
    wrong = side("dbrx", change)
    for content in (
        telling,
        f"{telling} {END} x",
        f"x\n{END}\n{telling}",
        f"a\u1c89a {telling}",
        f"a\u1c89a\n{END} {telling}",
        f"\u3000{END}{telling}{END}\u3000",
    ):
        assert verdict(content, good()) is not None, content
        assert verdict(content, wrong) is None, content


@pytest.mark.parametrize("fault", FAULTS)
def test_known_differences_without_the_fault_stay_known_in_a_wrong_file(fault: str) -> None:
    _, change = FAULTS[fault]
    assert verdict(f"x {END} y", side("dbrx", change)) == WHITE_SPACE


def test_a_token_that_takes_in_no_white_space_is_no_excuse() -> None:
    """The file loses a space beside a special token; the source's does not strip."""
    assert without_space(f"x {END} y", {END: (False, False)}) == f"x {END} y"
    assert without_space(f"x {END} y", {END: (False, True)}) == f"x {END}y"
    assert without_space(f"x {END} y", {}) == f"x {END} y"


def test_the_longest_of_two_tokens_at_one_place_counts() -> None:
    strips = {"<|a|>": (True, True), "<|a|><|b|>": (False, False)}
    assert without_space("x <|a|><|b|> y <|a|> z", strips) == "x <|a|><|b|> y<|a|>z"
