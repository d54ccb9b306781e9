r"""Seeded random texts that a tokenizer may stumble over, for comparing two tokenizers on as many as one likes.

A text is one to five pieces, each made by one of RECIPES: words, code, numbers, contractions, white space of all
kinds, special tokens and near misses, long runs, combining marks, emoji sequences, one of many scripts, and code
points from anywhere. Lone surrogates, which no file can hold, never appear.

The same count, seed and special texts give the same texts everywhere: nothing is used of Python's random but
random(), the only method whose numbers are promised to stay the same from one Python to the next.

    >>> [text == again for text, again in zip(fuzz_texts(3, 7), fuzz_texts(3, 7))]
    [True, True, True]
"""
# ruff: noqa: RUF001  # characters that look like others are what a tokenizer is tested on

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

MOST_PIECES = 5

COMMON_WORDS = (
    "the of and to in is that it was for on are as with his they I at be this have from or one had by word but not "
    "what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part strawberry "
    "antidisestablishmentarianism iPhone McDonald NASA HTTPServer naïve café Zürich Øresund façade señor straße "
    "Быстрая Γειά 你好世界 こんにちは 안녕하세요 مرحبا שלום नमस्ते สวัสดี"
)
WORDS = COMMON_WORDS.split()

CODE = (
    "def f(x):\n    return x\n",
    "    if (a[i] != b[j]) {\n",
    "\t\tfor (int i = 0; i < n; ++i)\n",
    "}\r\n\r\n",
    "#include <stdio.h>\n",
    'print(f"{value!r:>10}")',
    "self.__init__(*args, **kwargs)",
    "lambda x: x**2",
    "// note(me): 100%\n",
    "/* ... */",
    "SELECT * FROM t WHERE a <> 'b';",
    '{"key": [1, 2.5e-3, null]}',
    "https://example.org/a/b?c=d&e=%20#f",
    "<div class='x'>&nbsp;</div>",
    "$\\frac{1}{2}$",
    "C:\\dir\\file.txt",
    "user@example.org",
    "x = y  # z",
    "-->",
    "===",
    "...",
    "```python\n",
)

APOSTROPHES = "''''’ʼ`＇"
AFTER_APOSTROPHE = ("s", "S", "t", "T", "re", "RE", "Re", "ve", "vE", "m", "M", "ll", "LL", "lL", "d", "D")
ALMOST_CONTRACTIONS = ("ſ", "l", "r", "v", "x", "st", "rs", "lle", "é", "ß", "İ", "1", " s", "\ns", "'s", "")

# White_Space, and what one may take for it.
SPACES = " \t\n\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
SPACES += "\u2028\u2029\u202f\u205f\u3000"
NEARLY_SPACES = "\x1c\x1d\x1e\x1f\u180e\u200b\u200c\u200d\u2060\ufeff\u00ad"

DIGITS = "0123456789"
ALL_DIGITS = DIGITS + "٠١٢٣۴५६೭๘༩０１９²³¹½¾⅐Ⅳⅷↂ①⑳❿一二三〇𝟘𝟡𑁦\U0001f100"
IN_NUMBERS = ".,-+/:eExX_ %$€"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
MORE_PUNCTUATION = "«»„“”‘…–—•¡¿§¶†‡‰′″‹›、。「」『』，．！？،؛؟।॥๏"
SYMBOLS = "©®™°±×÷¬¢£¥₿→⇒∀∂∑√∞≈≠≤≥─│█▓◆★☃♠✓✗"
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0323\u0338\u0483\u0591\u05bc\u064b\u0651\u0670\u093e\u094d\u0b56"
MARKS += "\u0e31\u0e34\u0e48\u0f71\u1dc0\u20d0\u20dd\u3099\ufe20\U000e0100\U0001d165"

# Ends and beginnings of what is handled alike, and letters whose cases are odd.
EDGES = "\0\x01\x1b\x7f\x80\x85\x9f\xaa\xb5\xba\xdf\xffĀıİŉſǅǰΐςΩẞKÅ\u0378\u0530\u2029\u2d70\ud7ff\ue000\uf8ff"
EDGES += "\ufb00\ufb06\ufdd0\ufeff\uff21\uff41\uffa0\ufffd\ufffe\uffff\U00010000\U00010400\U00010428\U0001e900"
EDGES += "\U0001f1e6\U000e0001\U000e007f\U000f0000\U0010ffff"

PEOPLE = "👩👨🧑👧👦🧒👮🕵💃🏃"
SKINS = "🏻🏼🏽🏾🏿"
OBJECTS = "🔥🚀💻🎓⚕❤♀♂✈🏳🌈☃☠😀🙂🤖🥺"
FLAG_LETTERS = "🇦🇧🇨🇩🇪🇫🇬🇯🇰🇺"
JOINER, EMOJI_STYLE, KEYCAP = "\u200d", "\ufe0f", "\u20e3"

# First and last code points of blocks; some of their code points are not assigned, which is meant.
SCRIPTS = (
    (0x00C0, 0x024F),  # Latin
    (0x0250, 0x02FF),  # phonetics
    (0x0370, 0x03FF),  # Greek
    (0x0400, 0x052F),  # Cyrillic
    (0x0530, 0x058F),  # Armenian
    (0x0590, 0x05FF),  # Hebrew
    (0x0600, 0x06FF),  # Arabic
    (0x0700, 0x074F),  # Syriac
    (0x0900, 0x097F),  # Devanagari
    (0x0980, 0x09FF),  # Bengali
    (0x0B80, 0x0BFF),  # Tamil
    (0x0E00, 0x0E7F),  # Thai
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x10A0, 0x10FF),  # Georgian
    (0x1100, 0x11FF),  # Hangul Jamo
    (0x1200, 0x137F),  # Ethiopic
    (0x13A0, 0x13FF),  # Cherokee
    (0x1780, 0x17FF),  # Khmer
    (0x1800, 0x18AF),  # Mongolian
    (0x1C80, 0x1C8F),  # Cyrillic, additions of Unicode 16 among them
    (0x1E00, 0x1FFF),  # Latin and Greek with marks
    (0x2000, 0x206F),  # punctuation
    (0x20A0, 0x2BFF),  # currencies, letter-like symbols, arrows, mathematics, shapes
    (0x2C00, 0x2DFF),  # Glagolitic, Coptic, Tifinagh
    (0x3000, 0x30FF),  # Japanese syllables and punctuation
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xA640, 0xA7FF),  # Cyrillic and Latin additions
    (0xAC00, 0xD7FF),  # Hangul
    (0xE000, 0xF8FF),  # private use
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFB00, 0xFDFF),  # presentation forms
    (0xFE00, 0xFFFF),
    (0x10000, 0x10FFF),  # old scripts
    (0x11000, 0x11FFF),  # scripts of South Asia
    (0x12000, 0x1254F),  # cuneiform
    (0x13000, 0x1345F),  # hieroglyphs
    (0x16A00, 0x16FFF),
    (0x1B000, 0x1B2FF),  # old kana
    (0x1D100, 0x1D7FF),  # music, mathematical letters
    (0x1E900, 0x1EEFF),  # Adlam, Arabic mathematics
    (0x1F000, 0x1FAFF),  # pictures
    (0x20000, 0x323AF),  # rare ideographs
    (0xE0000, 0xE01EF),  # tags, variation selectors
)

SURROGATES = range(0xD800, 0xE000)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Draws:
    """Random choices made of random() alone."""

    def __init__(self, seed: int, special_texts: Sequence[str]) -> None:
        self._random = Random(seed).random  # noqa: S311  # seeded texts, no secrets
        self.special_texts = special_texts

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return int(self._random() * count)

    def length(self, most: int) -> int:
        """A number from 1 to most, small ones more often."""
        return 1 + int(self._random() ** 2 * most)

    def one_of(self, items: Sequence[str]) -> str:
        """One character or one text."""
        return items[int(self._random() * len(items))]

    def many_of(self, items: Sequence[str], most: int) -> str:
        """A run of them."""
        random, count = self._random, len(items)
        return "".join([items[int(random() * count)] for _ in range(self.length(most))])


def fuzz_texts(count: int, seed: int, special_texts: Sequence[str] = ()) -> Iterator[str]:
    """So many random texts, none empty; special_texts are the special tokens that some of them hold.

    A special text that is empty, or that holds a lone surrogate, stays out of them.
    """
    draws = Draws(seed, [text for text in special_texts if text and not LONE_SURROGATE.search(text)])
    for _ in range(count):
        yield "".join([RECIPES[draws.below(len(RECIPES))](draws) for _ in range(1 + draws.below(MOST_PIECES))])


def words(draws: Draws) -> str:
    """Words between single or a few spaces, some capitalized, with a full stop now and then."""
    parts = []
    for _ in range(draws.length(8)):
        word = draws.one_of(WORDS)
        style = draws.below(8)
        word = word.upper() if style == 0 else word.title() if style == 1 else word
        parts.append(word + draws.one_of((" ", " ", " ", " ", "  ", ", ", ". ", "", "-", "_", "\n")))
    return "".join(parts)


def letters(draws: Draws) -> str:
    """Letters of ASCII without sense."""
    return draws.many_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ", 24)


def code(draws: Draws) -> str:
    """Lines of programs."""
    return draws.many_of(CODE, 3)


def numbers(draws: Draws) -> str:
    """Digits, of ASCII or of anywhere, some with signs between."""
    digits = ALL_DIGITS if draws.below(3) == 0 else DIGITS
    return draws.many_of(digits, 12) + draws.one_of(IN_NUMBERS) + draws.many_of(digits, 4)


def contractions(draws: Draws) -> str:
    """An apostrophe, what may follow it, and what may follow that."""
    ending = draws.one_of(AFTER_APOSTROPHE if draws.below(4) else ALMOST_CONTRACTIONS)
    before = draws.one_of(("", " ", "I", "don", "é", "1", "!", "\n"))
    return before + draws.one_of(APOSTROPHES) + ending + draws.one_of(("", " ", "a", "é", "1", "'", "\u0301"))


def white_space(draws: Draws) -> str:
    """Runs of white space."""
    style = draws.below(4)
    if style == 0:
        return draws.many_of(" \n", 12)
    if style == 1:
        return draws.many_of(" \t\r\n", 12)
    return draws.many_of(SPACES if style == 2 else SPACES + NEARLY_SPACES, 8)


def special_tokens(draws: Draws) -> str:
    """Special tokens, as they are and beside white space."""
    if not draws.special_texts:
        return letters(draws)
    beside = ("", "", "", " ", "\n", "  ", "\t", "\xa0", "\u3000", "a", "<", "|", ">")
    tokens = [draws.one_of(draws.special_texts) + draws.one_of(beside) for _ in range(draws.length(3))]
    return draws.one_of(beside) + "".join(tokens)


def near_misses(draws: Draws) -> str:
    """A special token with one character lost, doubled, exchanged or in the other case, or two cut together."""
    if not draws.special_texts:
        return letters(draws)
    text, other = draws.one_of(draws.special_texts), draws.one_of(draws.special_texts)
    at = draws.below(len(text))
    misses = (
        text[:at] + text[at + 1 :],
        text[:at] + text[at] + text[at:],
        text[:at] + draws.one_of("<|>_ x") + text[at + 1 :],
        text.swapcase(),
        text[:at] + other + text[at:],
        text[:at] + other[at:],
    )
    return draws.one_of(misses) or text


def long_runs(draws: Draws) -> str:
    """One character, or a few in turn, many times."""
    unit = draws.one_of(
        (" ", "\n", "a", "A", "=", "-", "0", "7", ".", "é", "中", "ab", "<|", "\u0301", "🙂", "\t", "x1")
    )
    return unit * draws.length(120)


def punctuation(draws: Draws) -> str:
    """Punctuation and symbols, sometimes after a space or before a line end."""
    signs = PUNCTUATION if draws.below(2) else PUNCTUATION + MORE_PUNCTUATION + SYMBOLS
    return draws.one_of(("", " ", "  ")) + draws.many_of(signs, 10) + draws.one_of(("", "\n", "\r\n", "\n\n", "/", " "))


def combining(draws: Draws) -> str:
    """Letters with marks, marks alone, marks after anything."""
    bases = "aeonEÅ中가ก1 !\n"
    return "".join([draws.one_of(bases) + draws.many_of(MARKS, 4) for _ in range(draws.length(5))])


def emoji(draws: Draws) -> str:
    """Emoji, with skins, joined, flags and keycaps."""
    style = draws.below(5)
    if style == 0:
        return JOINER.join([draws.one_of(PEOPLE) for _ in range(draws.length(4))])
    if style == 1:
        return draws.one_of(PEOPLE) + draws.one_of(SKINS) + JOINER + draws.one_of(OBJECTS) + EMOJI_STYLE
    if style == 2:
        return draws.many_of(FLAG_LETTERS, 6)
    if style == 3:
        return draws.one_of("0123456789#*") + EMOJI_STYLE + KEYCAP
    return draws.many_of(OBJECTS, 5) + draws.one_of(("", EMOJI_STYLE, "\ufe0e"))


def one_script(draws: Draws) -> str:
    """Characters of one script, with spaces between."""
    first, last = SCRIPTS[draws.below(len(SCRIPTS))]
    characters = [chr(first + draws.below(last - first + 1)) for _ in range(draws.length(16))]
    return "".join([character if draws.below(6) else character + " " for character in characters])


def anywhere(draws: Draws) -> str:
    """Code points from anywhere, most of them of the lower planes."""
    end = (0x800, 0x3000, 0x10000, 0x20000, 0x110000)[draws.below(5)]
    points = [draws.below(end) for _ in range(draws.length(10))]
    return "".join([chr(point) for point in points if point not in SURROGATES]) or "\ufffd"


def edges(draws: Draws) -> str:
    """Odd characters among plain ones."""
    return draws.many_of(EDGES + "aZ1 '\n", 10)


RECIPES: tuple[Callable[[Draws], str], ...] = (
    words,
    words,
    letters,
    code,
    numbers,
    contractions,
    white_space,
    special_tokens,
    near_misses,
    long_runs,
    punctuation,
    combining,
    emoji,
    one_script,
    one_script,
    anywhere,
    edges,
)
