from __future__ import annotations

import random

import pytest
from texts import PLAIN, random_texts
from tokenizers import Regex, pre_tokenizers

from phi4conv.errors import FormatError
from phi4conv.hf.pre_tokenizer import CL100K, GPT2, O200K, QWEN2
from phi4conv.reference.llama_vocab_rules import PRE_SETTINGS
from phi4conv.reference.split import PUBLISHED, SPLITTERS, published_splitter, shape, splitter
from phi4conv.reference.unicode_15_1 import category_runs, class_of

PUBLISHED_REGEXES = {"cl100k": CL100K, "o200k": O200K, "qwen2": QWEN2, "gpt2": GPT2}


def pieces(pre: str, text: str) -> list[str]:
    return list(splitter(pre)(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ", [" "]),
        ("Tell me", ["Tell", " me"]),
        ("  Tell", [" ", " Tell"]),
        ("Tell  ", ["Tell", "  "]),
        ("I'LL'd've", ["I", "'LL", "'d", "'ve"]),
        ("'tis", ["'t", "is"]),
        ("'x 'xy", ["'x", " '", "xy"]),
        ("1234567", ["123", "456", "7"]),
        ("٣٤٥٦", ["٣٤٥", "٦"]),
        ("a1b", ["a", "1", "b"]),
        ("!a\ta\na", ["!a", "\ta", "\n", "a"]),
        ("x !!\n\ny", ["x", " !!\n\n", "y"]),
        (" \n \n  a", [" \n \n", " ", " a"]),
        ("a\u3000b\u3000\u3000c", ["a", "\u3000b", "\u3000", "\u3000c"]),
        ("e\u0301t", ["e", "\u0301t"]),
        ("a\x1c\x1cb", ["a", "\x1c\x1c", "b"]),  # no white space, unlike Python's \s
        ("'ſa", ["'ſa"]),  # the long s is no s to llama.cpp
    ],
)
def test_phi_4s_regex_by_hand(text: str, expected: list[str]) -> None:
    assert pieces("dbrx", text) == expected


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("dbrx", ["Don", "'T", " say", " ", "123", "4", "!/\n"]),
        ("qwen2", ["Don", "'T", " say", " ", "1", "2", "3", "4", "!/\n"]),
        ("gpt-4o", ["Don'T", " say", " ", "123", "4", "!/\n"]),
        ("gpt-2", ["Don", "'", "T", " say", " 1234", "!/", "\n"]),
        ("default", ["Don", "'", "T", " say", " ", "123", "4", "!/", "\n"]),
    ],
)
def test_one_text_under_every_regex(pre: str, expected: list[str]) -> None:
    assert pieces(pre, "Don'T say 1234!/\n") == expected


def test_llama_cpps_gpt_4o_is_not_the_published_regex() -> None:
    def both(text: str) -> tuple[list[str], list[str]]:
        return pieces("gpt-4o", text), list(published_splitter("o200k")(text))

    assert both("camelCase") == (["camel", "Case"], ["camel", "Case"])
    assert both("caféÉcole") == (["caféÉcole"], ["café", "École"])
    assert both("e\u0301t") == (["e", "\u0301t"], ["e\u0301t"])
    assert both("don'ſ") == (["don", "'ſ"], ["don'ſ"])


def test_the_default_cuts_punctuation_first_and_digits_in_threes_last() -> None:
    assert pieces("default", "a,b`c 12345٣٣٣٣x") == ["a", ",", "b", "`", "c", " ", "123", "45٣٣٣٣", "x"]


@pytest.mark.parametrize("pre", ["dbrx", "gpt-4o", "qwen2", "gpt-2", "default"])
def test_nothing_is_lost_and_no_word_is_empty(pre: str) -> None:
    for text in (*PLAIN, *random_texts(500, seed=4)):
        words = pieces(pre, text)
        assert "".join(words) == text
        assert all(words)


def test_names_of_one_regex_split_alike() -> None:
    assert SPLITTERS["llama-bpe"] == SPLITTERS["smaug-bpe"] == SPLITTERS["dbrx"]
    assert SPLITTERS["phi-2"] == SPLITTERS["gpt-2"]
    assert set(SPLITTERS) <= set(PRE_SETTINGS), "llama.cpp has no such name"


@pytest.mark.parametrize("pre", ["deepseek-v3", "DBRX", "", "o200k"])
def test_an_unknown_name_is_refused_with_the_known_ones(pre: str) -> None:
    with pytest.raises(FormatError, match="is not known here") as caught:
        splitter(pre)
    (problem,) = caught.value.problems
    assert problem.where == "tokenizer.ggml.pre"
    assert problem.found == repr(pre)
    assert "dbrx" in problem.expected
    assert problem.next_step


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        splitter("dbrx")("a\ud800b")


def test_a_shape_has_one_character_of_the_same_class_for_each() -> None:
    text = "".join(chr(start) for start, category in category_runs() if category not in ("Cs", "Mn", "Mc", "Me"))
    drawn = shape(text)
    assert len(drawn) == len(text)
    assert [class_of(character) for character in drawn] == [class_of(character) for character in text]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upper", ["aa", "\u1c89", "1", "\u1c89b"]),
        ("lower", ["aa\u1c89", "1", "\u1c89b"]),
        ("letter", ["aa\u1c89", "1", "\u1c89b"]),
        ("mark", ["aa\u1c89", "1", "\u1c89b"]),
        ("number", ["aa", "\u1c891\u1c89", "b"]),
        ("punctuation", ["aa", "\u1c89", "1", "\u1c89b"]),
        ("space", ["aa", "\u1c89", "1", "\u1c89b"]),
        ("other", ["aa", "\u1c89", "1", "\u1c89b"]),
    ],
)
def test_a_character_can_be_put_into_another_class(name: str, expected: list[str]) -> None:
    # Unassigned in Unicode 15.1, so "other" without a word.
    split = published_splitter("o200k", {"\u1c89": name})
    assert list(split("aa\u1c891\u1c89b")) == expected


def test_a_changed_class_changes_no_other_splitter() -> None:
    assert list(splitter("dbrx", {"\u1c89": "letter"})("a\u1c89")) == ["a\u1c89"]
    assert pieces("dbrx", "a\u1c89") == ["a", "\u1c89"]


@pytest.mark.parametrize("classes", [{"a": "letter"}, {"éé": "letter"}, {"é": "Lu"}, {"": "letter"}])
def test_classes_that_cannot_be_are_refused(classes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is no character beyond ASCII with one of the classes upper"):
        splitter("dbrx", classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_regexes_split_as_tokenizers_does(name: str) -> None:
    theirs = pre_tokenizers.Split(Regex(PUBLISHED_REGEXES[name]), "isolated")
    ours = published_splitter(name)
    generator = random.Random(15)
    # Letters of either case, marks and the like that Unicode 15.1 knows, at the ends of their runs, in many contexts.
    assigned = [chr(start) for start, category in category_runs() if category not in ("Cn", "Cs", "Co")]
    contexts = ("a{}b", "A{}B", "aB{}Cd", "1{}2", " {}'s", "\n{}\n", "!{}!", "x'{}y", "'{}", "{}\u0301{}")
    texts = [*PLAIN, *random_texts(500, seed=6)]
    texts += [generator.choice(contexts).format(character, character) for character in assigned]
    texts += ["".join(generator.choices(assigned, k=8)) for _ in range(3000)]
    for text in texts:
        expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
        assert list(ours(text)) == expected, ascii(text)
