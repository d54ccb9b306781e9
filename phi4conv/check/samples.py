"""The groups of texts that a tokenizer is proved on, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gguf import TokenType

from phi4conv.check.comparison import Sample
from phi4conv.check.fuzz import fuzz_texts
from phi4conv.check.texts import TEXTS, special_token_texts
from phi4conv.hf.source import SourceTokenizer
from phi4conv.vocab import Vocabulary


@dataclass(frozen=True)
class SampleGroup:
    """Texts of one kind. They can be had again and again, and are the same each time."""

    id: str  # of the finding when they come out wrong: "tokenizer/texts"
    name: str  # for people
    samples: Callable[[], Iterable[Sample]]


def sample_groups(
    source: SourceTokenizer, user_texts: Sequence[tuple[str, str]], fuzz: int, seed: int
) -> list[SampleGroup]:
    """Every group: each token's own text, the built-in texts, the user's texts (name and text), and random ones."""
    vocabulary = source.vocabulary
    special = special_texts(vocabulary)
    groups = [
        SampleGroup("tokenizer/own-texts", "own texts of tokens", lambda: own_texts(source)),
        SampleGroup("tokenizer/texts", "built-in texts", lambda: built_in_texts(special)),
    ]
    if user_texts:
        groups.append(SampleGroup("tokenizer/your-texts", "your texts", lambda: both_ways(user_texts)))
    if fuzz:
        groups.append(SampleGroup("tokenizer/fuzz", "random texts", lambda: random_texts(fuzz, seed, special)))
    return groups


def special_texts(vocabulary: Vocabulary) -> list[str]:
    """The texts of all tokens that are found in a text before it is split."""
    kinds = {TokenType.CONTROL, TokenType.USER_DEFINED}
    return [text for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True) if kind in kinds]


def own_texts(source: SourceTokenizer) -> Iterator[Sample]:
    """The text of every token that is text by itself; some stand for a part of a character only."""
    types = source.vocabulary.types
    for token_id, piece in enumerate(source.pieces(range(len(types)))):
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            continue
        yield Sample(f"token {token_id}", text)
        if types[token_id] != TokenType.NORMAL:
            yield Sample(f"token {token_id}, as plain text", text, parse_special=False)


def built_in_texts(special: Sequence[str]) -> Iterator[Sample]:
    """phi4conv's own texts, then each special token in awkward places."""
    named = [*((text.name, text.text) for text in TEXTS), *special_token_texts(special)]
    yield from both_ways(named)
    for name, text in named[:3]:
        yield Sample(f"{name}, with bos and eos as the tokenizer adds them", text, add_special=True)


def random_texts(count: int, seed: int, special: Sequence[str]) -> Iterator[Sample]:
    """Random texts, the same for a seed."""
    yield from both_ways(
        (f"random text {index} of seed {seed}", text) for index, text in enumerate(fuzz_texts(count, seed, special))
    )


def both_ways(named: Iterable[tuple[str, str]]) -> Iterator[Sample]:
    """Each text with special tokens read as such and, where that can make a difference, as plain text."""
    for name, text in named:
        yield Sample(name, text)
        yield Sample(f"{name}, as plain text", text, parse_special=False)
