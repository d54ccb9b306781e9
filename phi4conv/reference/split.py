r"""The split regexes of llama.cpp: how a text is cut into the words that byte-pair merges never cross.

A GGUF file names its regex in tokenizer.ggml.pre; llama.cpp carries the regexes themselves (llama-vocab.cpp), runs
the commonest by hand-written loops and the others by std::regex (unicode.cpp). Here all of them are patterns for
Python's re, which knows no \p{L}: so a text is first drawn as its *shape*, where every character beyond ASCII becomes
one stand-in for its Unicode 15.1 class. The pattern cuts the shape, and the text is cut at the same places.

    >>> shape("Äffchen, 2³ Œuvres\u3000ok")
    'Àffchen, 2² Àuvres\xa0ok'
    >>> split = splitter("dbrx")
    >>> list(split("We'll pay 12345€  now"))
    ['We', "'ll", ' pay', ' ', '123', '45', '€', ' ', ' now']
    >>> "".join(split("nothing is ever\t\tlost")) == "nothing is ever\t\tlost"
    True

PUBLISHED holds the regexes that llama.cpp's are adaptations of, as tokenizer.json files have them.

Left out: the regexes of families far from Phi-4 (splitter() says which are known), and the end of llama.cpp where
std::regex meets a word of some 50,000 characters under gpt-4o or default: it overflows its stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np

from phi4conv.arrays import Bytes
from phi4conv.errors import FormatError, Problem
from phi4conv.reference.unicode_15_1 import CLASSES, class_table

Splitter = Callable[[str], Iterator[str]]

# The stand-in of each class belongs to it, all but the mark's, of which Latin-1 has none.
STAND_INS: Mapping[str, str] = {
    "upper": "À",
    "lower": "à",
    "letter": "ª",
    "mark": "¨",
    "number": "²",
    "punctuation": "§",
    "symbol": "±",
    "space": "\xa0",
    "other": "\xad",
}

# The long s alone keeps an identity: Oniguruma, the engine of tokenizers, reads it where (?i:'s) is asked for.
LONG_S, LONG_S_STAND_IN = "\u017f", "ß"

# Members of a bracket expression over shapes. The ASCII characters of \p{P} and \p{S} are llama.cpp's own lists.
UPPER, LOWER, OTHER_LETTER, MARK = "A-ZÀ", "a-zàß", "ª", "¨"
LETTER = UPPER + LOWER + OTHER_LETTER
NUMBER = "0-9²"
SPACE = r"\t-\r \xa0"
PUNCTUATION = r"!-#%-*,-/:;?@\[-\]_{}§"

# Contractions by llama.cpp: ASCII letters only. CONTRACTION_PUBLISHED is (?i:'s|'t|'re|'ve|'m|'ll|'d) in Oniguruma.
CONTRACTION = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
CONTRACTION_PUBLISHED = CONTRACTION.replace("[sS", "[sSß")

WHITE_SPACE_RUNS = rf"[{SPACE}]*[\r\n]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"


def cl100k(contraction: str, digits: str) -> str:
    """The regex of cl100k_base, and of Qwen 2 where digits are single."""
    return (
        rf"{contraction}|[^\r\n{LETTER}{NUMBER}]?[{LETTER}]+|[{NUMBER}]{digits}"
        rf"| ?[^{SPACE}{LETTER}{NUMBER}]+[\r\n]*|{WHITE_SPACE_RUNS}"
    )


def o200k(contraction: str, upper: str, lower: str) -> str:
    """The regex of o200k_base: words begin a new piece where upper case follows lower case."""
    return (
        rf"[^\r\n{LETTER}{NUMBER}]?[{upper}]*[{lower}]+(?:{contraction})?"
        rf"|[^\r\n{LETTER}{NUMBER}]?[{upper}]+[{lower}]*(?:{contraction})?"
        rf"|[{NUMBER}]{{1,3}}| ?[^{SPACE}{LETTER}{NUMBER}]+[\r\n/]*|{WHITE_SPACE_RUNS}"
    )


GPT2 = (
    rf"'(?:[stmd]|re|ve|ll)| ?[{LETTER}]+| ?[{NUMBER}]+| ?[^{SPACE}{LETTER}{NUMBER}]+"
    rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
)

CL100K = cl100k(CONTRACTION, "{1,3}")
QWEN2 = cl100k(CONTRACTION, "")

# llama.cpp's gpt-4o takes every letter beyond ASCII for upper and for lower case, and no mark into a word.
GPT4O = o200k(CONTRACTION, "A-Z" + "Ààßª", "a-z" + "Ààßª")

# Four regexes one after the other, each cutting the pieces of the one before. What a regex does not match stays
# together: hence the second half of each alternative.
DEFAULT = (
    rf"[{PUNCTUATION}$+<=>^~|]+|[^{PUNCTUATION}$+<=>^~|]+",
    GPT2,
    rf"[{NUMBER}]+|[^{NUMBER}]+",
    r"[0-9]{3}|(?:(?![0-9]{3})[\s\S])+",
)

CL100K_NAMES = (
    "dbrx smaug-bpe llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "chatglm-bpe glm4 glm5"
)
GPT4O_NAMES = "gpt-4o llama4 kanana2 talkie minimax-m2"
QWEN2_NAMES = "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2"
GPT2_NAMES = (
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code "
    "roberta-bpe mpt olmo jais trillion granite-docling exaone4"
)

# Patterns by the name in tokenizer.ggml.pre, to be applied one after the other; each matches every character.
SPLITTERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(CL100K_NAMES.split(), (CL100K,)),
    **dict.fromkeys(GPT4O_NAMES.split(), (GPT4O,)),
    **dict.fromkeys(QWEN2_NAMES.split(), (QWEN2,)),
    **dict.fromkeys(GPT2_NAMES.split(), (GPT2,)),
    "default": DEFAULT,
}

# The regexes as Hugging Face runs them. GPT-2's is the same on both sides. Between cl100k or qwen2 and llama.cpp's
# adaptation of it lies only the long s after an apostrophe; between o200k and gpt-4o lie marks and all capitals
# beyond ASCII.
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "cl100k": (cl100k(CONTRACTION_PUBLISHED, "{1,3}"),),
    "o200k": (o200k(CONTRACTION_PUBLISHED, UPPER + OTHER_LETTER + MARK, LOWER + OTHER_LETTER + MARK),),
    "qwen2": (cl100k(CONTRACTION_PUBLISHED, ""),),
    "gpt2": (GPT2,),
}


def splitter(pre: str, classes: Mapping[str, str] = {}) -> Splitter:
    """The splitter that a tokenizer.ggml.pre names: text -> its words in order, none empty, nothing lost.

    classes puts single characters beyond ASCII into another class of unicode_15_1.CLASSES, as a newer Unicode may: a
    capital letter is "upper", a small one "lower", any other "letter".

    Raises:
        FormatError: The regex of this name is not known here.
        ValueError: classes holds something else than single characters beyond ASCII and names of classes; a text to
            be split holds a lone surrogate.
    """
    if pre not in SPLITTERS:
        raise FormatError(
            Problem(
                f"the split regex {pre!r} is not known here",
                where="tokenizer.ggml.pre",
                expected=f"one of {', '.join(SPLITTERS)}",
                found=repr(pre),
                next_step="Phi-4's is dbrx and Phi-4-mini's gpt-4o; a vocabulary with another regex can only be held "
                "against llama.cpp itself",
            )
        )
    return splitter_by(SPLITTERS[pre], classes)


def published_splitter(name: str, classes: Mapping[str, str] = {}) -> Splitter:
    """The splitter of a regex in PUBLISHED; classes and ValueError as for splitter(), KeyError for other names."""
    return splitter_by(PUBLISHED[name], classes)


def splitter_by(patterns: tuple[str, ...], classes: Mapping[str, str] = {}) -> Splitter:
    """A splitter that applies patterns over shapes one after the other; each must match every character."""
    stand_ins = stand_in_table(classes)
    first, *others = (re.compile(pattern) for pattern in patterns)

    def split(text: str) -> Iterator[str]:
        if text.isascii() and not others:
            return iter(first.findall(text))  # an ASCII text is its own shape
        drawn = shape(text, stand_ins)
        spans: Iterator[tuple[int, int]] = (match.span() for match in first.finditer(drawn))
        for pattern in others:
            spans = spans_within(spans, pattern, drawn)
        return (text[start:end] for start, end in spans)

    return split


def spans_within(spans: Iterator[tuple[int, int]], pattern: re.Pattern[str], drawn: str) -> Iterator[tuple[int, int]]:
    """Every span cut by a pattern, to which the text ends where the span does."""
    return (match.span() for start, end in spans for match in pattern.finditer(drawn, start, end))


def shape(text: str, stand_ins: Bytes | None = None) -> str:
    """The text with a stand-in for every character beyond ASCII: as many characters, all of Latin-1.

    stand_ins is a stand_in_table(). Raises ValueError for a lone surrogate.
    """
    if text.isascii():
        return text
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    table = plain_stand_ins() if stand_ins is None else stand_ins
    return str(table[code_points].tobytes(), "latin-1")


def stand_in_table(classes: Mapping[str, str]) -> Bytes:
    """The character of shapes for every code point, some of them in other classes: uint8 (0x110000,).

    Raises ValueError as splitter() says.
    """
    if not classes:
        return plain_stand_ins()
    table: Bytes = plain_stand_ins().copy()
    for character, name in classes.items():
        if len(character) != 1 or character.isascii() or name not in STAND_INS:
            raise ValueError(
                f"{character!r}: {name!r} is no character beyond ASCII with one of the classes {', '.join(CLASSES)}"
            )
        table[ord(character)] = ord(STAND_INS[name])
    return table


@cache
def plain_stand_ins() -> Bytes:
    """The character of shapes for every code point as Unicode 15.1 has them: uint8 (0x110000,)."""
    by_class = np.array([ord(STAND_INS[name]) for name in CLASSES], dtype=np.uint8)
    table = np.take(by_class, class_table())
    table[:128] = np.arange(128)
    table[ord(LONG_S)] = ord(LONG_S_STAND_IN)
    table.setflags(write=False)
    return table
