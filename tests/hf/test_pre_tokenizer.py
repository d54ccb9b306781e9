from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from phi4conv.errors import CheckpointError
from phi4conv.hf.pre_tokenizer import (
    CL100K,
    CL100K_TIKTOKEN_0_6,
    GPT2,
    LLAMA_CPP_NAMES,
    O200K,
    QWEN2,
    pre_tokenizer_name,
)

# Kinds of character that the regexes tell apart: every white space and line end, contractions in both cases and
# with the two letters that fold to s and k, letters of each case, marks, digits beyond ASCII, format characters.
CHARACTERS = (
    " \t\n\r\x0b\x0c\x85\xa0\u2028\u3000''''sStTrReEvVmMlLdDaZ0123\u0663\xbd.,!?-_/"
    "\u017f\u0130\u212a\xc0\xe9\u1e9e\u0301\u0903\u092e\u4e2d\xf1\u200b\xad\U0001d7d8\U00010400\U00010428\u01c5\u02b0\U0001f680\ufeff\u0307\u02bc"
)


def random_texts(count: int) -> Iterator[str]:
    source = random.Random(20)  # reproducible, not secret
    for _ in range(count):
        length = source.choice((3, 6, 12, 25))
        if source.random() < 0.75:
            yield "".join(source.choices(CHARACTERS, k=length))
        else:
            points = (source.randrange(source.choice((0x250, 0x3000, 0x110000))) for _ in range(length))
            yield "".join(" " if 0xD800 <= point < 0xE000 else chr(point) for point in points)


def pieces(pre_tokenizer: PreTokenizer) -> Callable[[str], list[str]]:
    return lambda text: [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def cut(regex: str, behaviour: str = "isolated", *, invert: bool = False) -> Callable[[str], list[str]]:
    return pieces(Split(Regex(regex), behaviour, invert))


def split_then_bytes(regex: str, **changes: Any) -> dict[str, Any]:
    """The pre_tokenizer of Phi-4 with another regex; changes go to the Split."""
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split | changes, byte_level(use_regex=False)]}


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | changes


def name_of(pre_tokenizer: Any, *, ignore_merges: bool = False) -> str:
    return pre_tokenizer_name(pre_tokenizer, ignore_merges=ignore_merges, where="tokenizer.json")


@pytest.mark.parametrize(
    ("regex", "name"),
    [(CL100K, "dbrx"), (CL100K_TIKTOKEN_0_6, "dbrx"), (O200K, "gpt-4o"), (QWEN2, "qwen2"), (GPT2, "gpt-2")],
)
def test_a_known_regex_has_llama_cpps_name(regex: str, name: str) -> None:
    assert name_of(split_then_bytes(regex)) == name
    assert name_of(split_then_bytes(regex, behavior="Removed", invert=True)) == name
    assert name_of(split_then_bytes(regex.replace(r"\r", "\r").replace(r"\n", "\n"))) == name


def test_phi_4s_regex_is_known_to_the_letter() -> None:
    published = (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
        "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
    assert name_of(split_then_bytes(published)) == "dbrx"


def test_byte_level_alone_splits_like_gpt_2() -> None:
    assert name_of(byte_level()) == "gpt-2"
    assert name_of({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}) == "gpt-2"
    assert name_of({"type": "Sequence", "pretokenizers": [byte_level()]}) == "gpt-2"


def test_ignore_merges_goes_by_another_name() -> None:
    assert name_of(split_then_bytes(CL100K), ignore_merges=True) == "llama-bpe"


def test_ignore_merges_is_refused_where_llama_cpp_has_no_name_for_it() -> None:
    with pytest.raises(CheckpointError, match=r"ignore_merges is true, which llama\.cpp cannot do .*'gpt-4o'"):
        name_of(split_then_bytes(O200K), ignore_merges=True)


def test_an_unknown_regex_is_shown_with_the_names_known() -> None:
    with pytest.raises(CheckpointError) as caught:
        name_of(split_then_bytes(r"\p{N}|\s+"))
    message = str(caught.value)
    assert r"found:    \p{N}|\s+" in message
    assert "one that llama.cpp calls 'dbrx', 'gpt-4o', 'qwen2', 'gpt-2'" in message
    assert "tokenizer.json: pre_tokenizer" in message


SPLIT = split_then_bytes(CL100K)["pretokenizers"][0]
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (None, "cannot express\n.*\n.*\n  found:    none"),
        ({"type": "Sequence", "pretokenizers": [SPLIT, DIGITS, byte_level(use_regex=False)]}, "Split then Digits then"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, byte_level()]}, "Punctuation then ByteLevel"),
        ({"type": "Sequence", "pretokenizers": [SPLIT, SPLIT, byte_level(use_regex=False)]}, "Split then Split then"),
        ({"type": "Whitespace"}, "found:    Whitespace"),
        ({"type": "Sequence", "pretokenizers": [byte_level(use_regex=False), SPLIT]}, "ByteLevel then Split"),
        ({"type": "Sequence", "pretokenizers": [SPLIT, byte_level()]}, "two splitters"),
        ({"type": "Sequence", "pretokenizers": "ByteLevel"}, "not a pre-tokenizer object"),
        ("ByteLevel", "not a pre-tokenizer object"),
        (byte_level(use_regex=False), "ByteLevel without a regex"),
        (byte_level(add_prefix_space=True), "adds a space before the text"),
        ({"type": "ByteLevel"}, "adds a space before the text"),
        (split_then_bytes(CL100K, behavior="MergedWithNext"), "behavior 'MergedWithNext' with invert false"),
        (split_then_bytes(CL100K, behavior="Removed"), "behavior 'Removed' with invert false"),
        (
            split_then_bytes(CL100K, pattern={"String": " "}),
            r"something else than a regex\n.*\n.*\n.*\{'String': ' '\}",
        ),
        (split_then_bytes(CL100K, pattern=None), "something else than a regex"),
    ],
)
def test_what_gguf_cannot_express_is_refused_by_name(pre_tokenizer: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        name_of(pre_tokenizer)


@pytest.mark.parametrize("name", sorted(set(LLAMA_CPP_NAMES.values())))
def test_spellings_of_one_name_split_alike(name: str) -> None:
    first, *others = [regex for regex, known in LLAMA_CPP_NAMES.items() if known == name]
    split = cut(first)
    ways = [cut(other) for other in others] + [cut(first, "removed", invert=True)]
    ways.append(cut(first.replace(r"\r", "\r").replace(r"\n", "\n")))
    for text in random_texts(3000):
        expected = split(text)
        assert "".join(expected) == text
        for way in ways:
            assert way(text) == expected, ascii(text)


def test_names_differ_because_the_splits_do() -> None:
    text = "I'LL pay 12345/\n\tNow"
    splits = [tuple(cut(regex)(text)) for regex in (CL100K, O200K, QWEN2, GPT2)]
    assert len(set(splits)) == 4


def test_the_regex_inside_byte_level_is_gpt_2s() -> None:
    built_in = pieces(ByteLevel(add_prefix_space=False))
    spelled_out = pieces(Sequence([Split(Regex(GPT2), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]))
    for text in random_texts(3000):
        assert built_in(text) == spelled_out(text), ascii(text)


def test_near_spellings_are_left_out_because_they_split_otherwise() -> None:
    tiktoken_0_8 = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )
    assert cut(tiktoken_0_8)("a\n\t") == ["a", "\n\t"]
    assert cut(CL100K)("a\n\t") == ["a", "\n", "\t"]
    rewritten = CL100K.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert cut(rewritten)("'\u017fx") == ["'\u017fx"]
    assert cut(CL100K)("'\u017fx") == ["'\u017f", "x"]
    for regex in (tiktoken_0_8, rewritten):
        with pytest.raises(CheckpointError, match="a split regex that phi4conv does not know"):
            name_of(split_then_bytes(regex))
