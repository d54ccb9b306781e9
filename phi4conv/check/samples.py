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


def own_texts_group(source: SourceTokenizer) -> SampleGroup:
    """The text of every token."""
    return SampleGroup("tokenizer/own-texts", "own texts of tokens", lambda: own_texts(source))


def built_in_group(source: SourceTokenizer) -> SampleGroup:
    """phi4conv's own texts, and the special tokens in awkward places."""
    special = special_texts(source.vocabulary)
    return SampleGroup("tokenizer/texts", "built-in texts", lambda: built_in_texts(special))


def probe_group(source: SourceTokenizer) -> SampleGroup:
    """A part of the built-in texts that takes a moment: of the special tokens only those with a role."""
    vocabulary = source.vocabulary
    roles = sorted({vocabulary.texts[token_id] for token_id in vocabulary.special.present().values()})
    return SampleGroup("tokenizer/texts", "built-in texts", lambda: built_in_texts(roles))


def user_groups(texts: Sequence[tuple[str, str]]) -> list[SampleGroup]:
    """The user's texts, each with a name; no group without any."""
    return [SampleGroup("tokenizer/your-texts", "your texts", lambda: both_ways(texts))] if texts else []


def fuzz_groups(count: int, seed: int, source: SourceTokenizer) -> list[SampleGroup]:
    """Random texts; no group for none."""
    special = special_texts(source.vocabulary)
    return [SampleGroup("tokenizer/fuzz", "random texts", lambda: random_texts(count, seed, special))] if count else []


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
