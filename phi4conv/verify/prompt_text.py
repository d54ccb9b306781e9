"""A text of the user's, cut into windows of tokens as llama-perplexity cuts it (tools/perplexity/perplexity.cpp).

As there the text is read without the line end behind it, special tokens in it are plain text, BOS takes the place of
each window's first token where the tokenizer adds one, and what is left behind the last whole window is not used.
Unlike there one window is enough, and a text that is shorter still is one shorter window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from phi4conv.check.comparison import Sample
from phi4conv.check.user_texts import read_text
from phi4conv.errors import FormatError, Problem
from phi4conv.hf.source import SourceTokenizer

# Of a long text so many characters are tokenized for each token that is wanted; more where that does not do.
CHARACTERS_PER_TOKEN = 8

# Where a text is cut in the middle of a word, its last tokens are others than the whole text has there.
SPARE_TOKENS = 64


@dataclass(frozen=True)
class TextTokens:
    """The beginning of a text as tokens.

    Attributes:
        sample: The text, as far as it was tokenized, under the name of its file.
        ids: All tokens of the sample.
        used: How many of them stand in windows, from the first on.
        windows: The windows, of one length.
        notes: What was left out.
    """

    sample: Sample
    ids: tuple[int, ...]
    used: int
    windows: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


def read_text_tokens(path: Path, source: SourceTokenizer, window: int, max_tokens: int | None) -> TextTokens:
    """Tokenize a text and cut it into windows; max_tokens tokens, None for all, fill as many as there are whole.

    Raises:
        FormatError: The text cannot be read, is too large, is not UTF-8, or is empty.
    """
    whole = Sample(str(path), read_text(path).removesuffix("\n"), parse_special=False, add_special=True)
    if not whole.text:
        advice = "give a file with a text in it, of some thousand words at best"
        raise FormatError(Problem("the text is empty", str(path), "a text", "nothing", advice))
    sample, ids = beginning(whole, source, max_tokens)
    wanted = len(ids[:max_tokens])
    length = min(window, wanted)
    used = wanted - wanted % length
    special = source.vocabulary.special
    first = (special.bos,) if source.vocabulary.add_bos and special.bos is not None else ()
    windows = tuple((*first, *ids[start + len(first) : start + length]) for start in range(0, used, length))
    if wanted < len(ids):
        characters = f"{len(source.decode(ids[:used])):,} of {len(whole.text):,} characters"
        note = f"its first {used:,} tokens are used, {characters}; --max-tokens N takes more"
    else:
        note = tail_note(len(ids) - used, len(ids), window)
    notes = [note, f"{used:,} tokens make one window, shorter than {window:,}" if length < window else ""]
    return TextTokens(sample, ids, used, windows, tuple(f"{path}: {each}" for each in notes if each))


def beginning(whole: Sample, source: SourceTokenizer, max_tokens: int | None) -> tuple[Sample, tuple[int, ...]]:
    """The beginning of a text, with more than max_tokens tokens if there are more, and those tokens."""
    length = len(whole.text) if max_tokens is None else max_tokens * CHARACTERS_PER_TOKEN
    while True:
        part = replace(whole, text=whole.text[:length])
        (ids,) = source.encode([part.text], parse_special=part.parse_special, add_special=part.add_special)
        if length >= len(whole.text) or (max_tokens is not None and len(ids) >= max_tokens + SPARE_TOKENS):
            return part, tuple(ids)
        length *= 2


def tail_note(rest: int, count: int, window: int) -> str:
    """What is to be said of tokens behind the last whole window; nothing where there are none."""
    if rest == 0:
        return ""
    return (
        f"left out, as by llama-perplexity, is the end that makes no window of {window:,}: {rest:,} of {count:,} tokens"
    )
