from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import combinations

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from phi4conv.carried import phi4_vocabulary
from phi4conv.check.chats import CHATS, CONVERSATIONS
from phi4conv.check.texts import GROUPS, SPECIAL_TOKEN_PLACES, TEXTS, NamedText, special_token_texts
from phi4conv.check.texts_characters import NEWER_THAN_UNICODE_15_1, SPACES
from phi4conv.hf.pre_tokenizer import CL100K, CL100K_TIKTOKEN_0_6, GPT2, O200K, QWEN2
from phi4conv.hf.source import source_of
from phi4conv.reference.unicode_15_1 import class_of

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EVERYTHING = "".join(text.text for text in TEXTS)
REGEXES = {"cl100k": CL100K, "o200k": O200K, "qwen2": QWEN2, "gpt2": GPT2}


def text_named(name: str) -> str:
    return next(text.text for text in TEXTS if text.name == name)


def test_names_are_short_printable_and_used_once() -> None:
    names = [text.name for text in TEXTS] + [name for name, _ in special_token_texts(SPECIALS)]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isprintable()
        assert len(name) <= 60


def test_texts_are_unicode_and_differ() -> None:
    assert all(isinstance(text, NamedText) and text.text == text.text.encode().decode() for text in TEXTS)
    texts = [text.text for text in TEXTS]
    assert len(set(texts)) == len(texts)


def test_texts_are_many_and_small() -> None:
    assert 300 <= len(TEXTS) <= 700
    assert len(EVERYTHING.encode()) <= 100_000


@pytest.mark.parametrize(
    "script",
    [
        *("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "ARABIC", "HEBREW", "SYRIAC", "THAANA", "NKO"),
        *("DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM"),
        *("SINHALA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "ETHIOPIC", "CHEROKEE", "MONGOLIAN", "HANGUL"),
        *("HIRAGANA", "KATAKANA", "CJK", "BOPOMOFO", "YI", "CANADIAN", "TIFINAGH", "RUNIC", "OGHAM", "JAVANESE"),
        *("GOTHIC", "DESERET", "CUNEIFORM", "EGYPTIAN", "BRAILLE", "ADLAM", "OSAGE"),
    ],
)
def test_every_script_is_there(script: str) -> None:
    letters = {character for character in EVERYTHING if script in unicodedata.name(character, "").split()}
    assert len(letters) >= 4


def test_about_forty_languages_have_sentences() -> None:
    sentences = [text for text in GROUPS["language"].values() if len(text) > 40]
    assert len(sentences) >= 40


def test_every_class_of_the_split_regexes_is_there_in_ascii_and_beyond() -> None:
    classes = {(class_of(character), character.isascii()) for character in EVERYTHING}
    beyond = {"upper", "lower", "letter", "mark", "number", "punctuation", "symbol", "space", "other"}
    assert classes >= {(name, False) for name in beyond}
    assert classes >= {(name, True) for name in beyond - {"letter", "mark"}}


def test_every_general_category_is_there() -> None:
    categories = {unicodedata.category(character) for character in EVERYTHING}
    assert len(categories) == 29  # all but Cs, the surrogates


def test_every_white_space_is_tried_before_and_behind_everything() -> None:
    spaces = {chr(point) for point in range(0x110000) if class_of(chr(point)) == "space"}
    assert spaces == {" ", "\t", "\n", *SPACES.values()}
    for name, space in SPACES.items():
        text = text_named(f"white space: {name} everywhere")
        for neighbour in (f"a{space}b", space * 2, f" {space}", f"{space} ", f"\n{space}", f"{space}\n", f"{space}1"):
            assert neighbour in text or space == "\n"
        assert text.startswith(space)
        assert text.endswith(space)


@pytest.mark.parametrize(
    "part",
    [
        *("\x00", "\x1b", "\x7f", "\x80", "\U0010ffff", "\ud7ff", "\ue000", "\U000f0000", "\ufffe", "\ufeff", "\ufffd"),
        *("\u202e", "\u2066", "\u200f", "\u061c", "\u200d", "\u200c", "\ufe0f", "\u00ad", "\u2028", "\u00a0"),
        *(
            "e\u0301",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467",
            "\U0001f1e9\U0001f1ea",
            "\U0001f44d\U0001f3fb",
            "1\ufe0f\u20e3",
        ),
        *("\r\n", "\n\r", "\r\r", "\t\n", " \n", "\n ", "   ", "\t\t\t", "\n\n\n"),
        *(
            "'s",
            "'S",
            "’s",
            "’S",
            "'ll",
            "'LL",
            "'Ll",
            "'lL",
            "'re",
            "'RE",
            "'ve",
            "'VE",
            "'m",
            "'M",
            "'d",
            "'D",
            "'\u017f",
        ),
        *(
            "İ",
            "ı",
            "\u212a",
            "ẞ",
            "ς",
            "ǅ",
            "𝟎",
            "٣",
            "½",
            "²",
            "Ⅳ",
            "〇",
            "①",
            "0xDEADBEEF",
            "1,000,000",
            "1e5",
            "3.14",
        ),
        *("def ", "SELECT", "<!DOCTYPE", "fn longest", "#!/usr/bin/env", "\\begin{align}", '{"', "\r\n    ", "\n\t\t"),
    ],
)
def test_what_trips_tokenizers_is_there(part: str) -> None:
    assert any(part in text.text for text in TEXTS)


def test_texts_newer_than_unicode_15_1_are_just_that() -> None:
    assert len(NEWER_THAN_UNICODE_15_1) > 10
    for text in NEWER_THAN_UNICODE_15_1.values():
        assert any(class_of(character) == "other" for character in text)
    rest = [text for name, group in GROUPS.items() if "newer" not in name for text in group.values()]
    # An interpreter with a newer Unicode knows more categories; it must find none that 15.1 has not.
    lettered = {character for text in rest for character in text if unicodedata.category(character)[0] in "LMNPS"}
    assert not {character for character in lettered if class_of(character) in ("other", "space")}


def cut(regex: str) -> Callable[[str], list[str]]:
    split = Split(Regex(regex), "isolated")
    return lambda text: [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("pair", list(combinations(REGEXES, 2)), ids="-".join)
def test_every_two_split_regexes_are_told_apart_by_many_texts(pair: tuple[str, str]) -> None:
    first, second = (cut(REGEXES[name]) for name in pair)
    assert sum(first(text.text) != second(text.text) for text in TEXTS) >= 15


def test_two_spellings_of_one_regex_cut_every_text_alike() -> None:
    first, second = cut(CL100K), cut(CL100K_TIKTOKEN_0_6)
    for text in TEXTS:
        assert first(text.text) == second(text.text), text.name


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ((r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"(?:'s|'t|'re|'ve|'m|'ll|'d)"), 5),
        ((r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", ""), 10),
        ((r"\p{N}{1,3}", r"\p{N}{1,2}"), 20),
        ((r"\p{N}{1,3}", r"[0-9]{1,3}"), 8),
        ((r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?\p{L}+"), 20),
        ((r"+[\r\n]*|", "+|"), 20),
        ((r"|\s+(?!\S)", ""), 20),
        ((r"\s*[\r\n]+", r"[\r\n]+"), 10),
        ((r"\p{L}+|", r"[\p{L}\p{M}]+|"), 10),
        ((r"[^\s\p{L}\p{N}]+[", r"[!-/:-@\[-`{-~]+["), 10),
    ],
)
def test_a_small_fault_in_the_regex_shows_in_several_texts(change: tuple[str, str], least: int) -> None:
    assert CL100K.count(change[0]) == 1
    right, wrong = cut(CL100K), cut(CL100K.replace(*change))
    assert sum(right(text.text) != wrong(text.text) for text in TEXTS) >= least


def test_every_special_token_stands_in_every_place() -> None:
    texts = dict(special_token_texts(SPECIALS))
    assert len(texts) == len(SPECIALS) * len(SPECIAL_TOKEN_PLACES) + (len(SPECIALS) - 1) + 4
    for token in SPECIALS:
        assert texts[f"{token}: doubled"] == token * 2
        assert texts[f"{token}: in another case"] == token.upper()
        assert texts[f"{token}: escaped"] == f"\\{token} `{token}` {{{{{token}}}}} %{token}%"
        broken = texts[f"{token}: broken by a space"]
        assert token not in broken
        assert broken.replace(" ", "") == token
    assert texts["all special tokens with spaces between"] == " ".join(SPECIALS)
    assert texts["<|im_start|> before <|im_end|>"] == "<|im_start|><|im_end|>x<|im_end|><|im_start|>"


def test_special_tokens_with_braces_and_short_ones_do_no_harm() -> None:
    assert ("{x}: between words", "one {x} two") in set(special_token_texts(["{x}", "a"]))
    assert list(special_token_texts([])) == [
        (f"all special tokens with {name} between", "") for name in ("nothing", "spaces", "line ends", "words")
    ]


def test_no_text_holds_a_special_token_by_accident() -> None:
    assert not re.search(r"<\|[a-z_0-9]+\|>", EVERYTHING)


def test_the_texts_use_many_tokens_of_phi_4() -> None:
    source = source_of(phi4_vocabulary(), "phi4conv")
    encoded = source.encode([text.text for text in TEXTS], parse_special=False)
    assert len({token for ids in encoded for token in ids}) > 3500
    for text, ids in zip(TEXTS, encoded, strict=True):
        assert b"".join(source.pieces(ids)) == text.text.encode()


def test_every_conversation_is_there_with_and_without_generation_prompt() -> None:
    assert len({chat.name for chat in CHATS}) == len(CHATS) == 2 * len(CONVERSATIONS)
    for messages in CONVERSATIONS.values():
        assert {chat.add_generation_prompt for chat in CHATS if chat.messages == messages} == {False, True}
        for message in messages:
            assert message.keys() == {"role", "content"}
            assert message["role"] in ("system", "user", "assistant")
    contents = [message["content"] for messages in CONVERSATIONS.values() for message in messages]
    assert "" in contents
    assert any("<|im_end|>" in content for content in contents)
    assert any(content != content.strip() for content in contents)
