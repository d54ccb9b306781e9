"""Where Hugging Face and llama.cpp differ on a right file, each recognised exactly.

Three differences are known, and none is the file's fault. A text counts as one of them only if llama.cpp's tokens
become the source's once the difference is taken out, and so a real fault is never hidden behind one:

- white space around special tokens: the source drops it, llama.cpp keeps it, and GGUF cannot say. Taken out by
  dropping it from the text.
- characters newer than Unicode 15.1: letters to the source, nothing to llama.cpp. Taken out by giving those characters
  the class that the source's own pre-tokenizer gives them.
- llama.cpp's own version of the split regex: for gpt-4o it takes marks and capitals outside of ASCII otherwise than the
  published one, for the others a long s after an apostrophe. Taken out by splitting with the published one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import combinations

from gguf import TokenType

from phi4conv.hf.source import SourceTokenizer
from phi4conv.reference.bpe import BPE
from phi4conv.reference.llama_vocab import LlamaVocab
from phi4conv.reference.split import SPLITTERS, published_splitter, splitter
from phi4conv.reference.unicode_15_1 import is_assigned

WHITE_SPACE = "white space around special tokens"
NEWER_UNICODE = "characters newer than Unicode 15.1"
OWN_REGEX = "llama.cpp's own version of the split regex"
NAMES = (WHITE_SPACE, NEWER_UNICODE, OWN_REGEX)

# White_Space without U+001C..1F: what the tokenizers library drops around a token with lstrip or rstrip.
SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

# A character between two of a kind stays with them if it is of their kind, too.
PROBES = (("letter", "a{}a"), ("number", "1{}1"), ("space", " {} "))


# The published regex behind each of llama.cpp's that is not the same.
PUBLISHED_NAMES = {SPLITTERS["dbrx"]: "cl100k", SPLITTERS["gpt-4o"]: "o200k", SPLITTERS["qwen2"]: "qwen2"}


class KnownDifferences:
    """Tells for a text on which source and file differ whether a known difference explains it."""

    def __init__(self, source: SourceTokenizer, vocab: LlamaVocab) -> None:
        self.source = source
        self.vocab = vocab
        own = SPLITTERS.get(vocab.pre, ())
        # What a wrong regex does in place of the right one is a fault of the file's.
        is_right = own == SPLITTERS.get(source.vocabulary.pre)
        self.published = PUBLISHED_NAMES.get(own) if is_right else None
        self._tokenizers: dict[tuple[str, bool], BPE] = {}

    def explain(self, text: str, right: list[int], *, parse_special: bool, add_special: bool = False) -> str | None:
        """The name of the known difference behind a text, several joined by " and "; None when they do not explain it.

        right is the source's answer.
        """
        newer = "".join(sorted({character for character in text if not is_assigned(character)}))
        stripped = self.without_space(text, parse_special=parse_special)
        possible = {
            WHITE_SPACE: stripped != text,
            NEWER_UNICODE: bool(newer),
            OWN_REGEX: self.published is not None and not text.isascii(),
        }
        names = [name for name in NAMES if possible[name]]
        for count in range(1, len(names) + 1):
            for chosen in combinations(names, count):
                tokenizer = self.tokenizer(newer if NEWER_UNICODE in chosen else "", published=OWN_REGEX in chosen)
                changed = stripped if WHITE_SPACE in chosen else text
                if tokenizer.encode(changed, add_special=add_special, parse_special=parse_special) == right:
                    return " and ".join(chosen)
        return None

    def without_space(self, text: str, *, parse_special: bool) -> str:
        """The text without the white space that the source drops around tokens that it finds in it."""
        return without_space(text, self.source.strips if parse_special else self._strips_in_plain_text)

    @cached_property
    def _strips_in_plain_text(self) -> Mapping[str, tuple[bool, bool]]:
        """The tokens that the source finds in any text, special tokens not being looked for."""
        vocabulary = self.source.vocabulary
        defined = {vocabulary.texts[row] for row, kind in enumerate(vocabulary.types) if kind == TokenType.USER_DEFINED}
        return {text: sides for text, sides in self.source.strips.items() if text in defined}

    def tokenizer(self, newer: str, *, published: bool) -> BPE:
        """The file's tokenizer with its differences taken out."""
        key = (newer, published)
        if key not in self._tokenizers:
            if len(self._tokenizers) > 64:  # one for each set of new characters in a text
                self._tokenizers.clear()
            classes = {character: self.class_in_source(character) for character in newer}
            if published and self.published:
                split = published_splitter(self.published, classes)
            else:
                split = splitter(self.vocab.pre, classes)
            self._tokenizers[key] = BPE(self.vocab, split=split)
        return self._tokenizers[key]

    def class_in_source(self, character: str) -> str:
        """What the source's pre-tokenizer takes a character for: "letter", "number", "space" or "other"."""
        for name, probe in PROBES:
            if len(self.source.pretokenize(probe.format(character))) == 1:
                return name
        return "other"


def without_space(text: str, strips: Mapping[str, tuple[bool, bool]]) -> str:
    r"""The text without white space beside tokens that take it in: by token, whether to the left and to the right.

    >>> without_space("x\n <|end|> y", {"<|end|>": (True, False)})
    'x<|end|> y'
    """
    if not strips:
        return text
    kept, place = [], 0
    for match in leftmost_longest(tuple(strips)).finditer(text):
        to_the_left, to_the_right = strips[match[0]]
        before = text[place : max(place, match.start())]
        kept += [before.rstrip(SPACES) if to_the_left else before, match[0]]
        place = match.end()
        # Step by step: a slice of the rest for each token takes minutes for a text of megabytes.
        while to_the_right and place < len(text) and text[place] in SPACES:
            place += 1
    return "".join([*kept, text[place:]])


@lru_cache(maxsize=4)
def leftmost_longest(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any of the tokens; of those that begin at one place the longest, as the library looks for them."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
