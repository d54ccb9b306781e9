"""Phi-4 vocabularies with one thing wrong: what a mutation is, and the small changes that mutations are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf import Keys, TokenType
from vocabulary_changes import retyped, tokens_of, without
from vocabulary_files import Pairs, changed

from phi4conv.check.model import Severity
from phi4conv.gguf_file.edit import Change, edited
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, i32s, text, texts, u32
from phi4conv.vocab import byte_alphabet

K = Keys.Tokenizer

# What llama.cpp does with a file.
LOADS, REFUSED, ABORTS = "loads", "refused", "aborts"
UNKNOWN_HERE = "loads what phi4conv's own tokenizer of the file does not know"

# What mending a file brings: the good file's metadata, or other metadata that are as right.
RESTORED, RIGHT = "restored", "right"


@dataclass(frozen=True)
class Mutation:
    """One change of a good file.

    Attributes:
        name: What is wrong, for people.
        change: From the good metadata to the wrong ones.
        root: Id and code of the one defect to be found; None where the file stays right.
        severity: Of that defect.
        llama_cpp: LOADS, REFUSED or ABORTS: what llama.cpp does with the file.
        mended: RESTORED or RIGHT.
    """

    name: str
    change: Callable[[Pairs], Pairs]
    root: tuple[str, str] | None
    severity: Severity = Severity.FAIL
    llama_cpp: str = LOADS
    mended: str = RESTORED

    @property
    def is_harmless(self) -> bool:
        """Whether the file is right, or as right as a warning allows."""
        return self.root is None or self.severity < Severity.FAIL


def mutated(file: GGUFFile, mutation: Mutation) -> GGUFFile:
    """The file with the mutation."""
    return edited(file, changes_of(file, mutation))


def changes_of(file: GGUFFile, mutation: Mutation) -> tuple[Change, ...]:
    """What the mutation changes in a file; it must change something."""
    before, after = file.metadata, mutation.change(file.metadata)
    keys = [key for key in dict.fromkeys((*before, *after)) if before.get(key) != after.get(key)]
    if not keys:
        raise ValueError(f"{mutation.name}: changes nothing")
    return tuple(Change(key, after.get(key)) for key in keys)


def first_special(pairs: Pairs) -> int:
    """The id after the last token that merges make."""
    return len(byte_alphabet()) + len(pairs[K.MERGES].value)


def specials_of(pairs: Pairs) -> list[str]:
    """The texts of all special tokens."""
    return tokens_of(pairs)[first_special(pairs) :]


def put(*pairs: MetadataPair) -> Callable[[Pairs], Pairs]:
    """A change that sets pairs."""
    return lambda good: changed(good, *pairs)


def drop(*keys: str) -> Callable[[Pairs], Pairs]:
    """A change that removes keys."""
    return lambda good: without(good, *keys)


def with_tokens(change: Callable[[list[str]], Sequence[str]]) -> Callable[[Pairs], Pairs]:
    """A change of the list of tokens, and of nothing else."""
    return lambda good: changed(good, texts(K.LIST, change(tokens_of(good))))


def with_types(change: Callable[[list[int]], Sequence[int]]) -> Callable[[Pairs], Pairs]:
    """A change of the list of types."""
    return lambda good: changed(good, i32s(K.TOKEN_TYPE, change(list(good[K.TOKEN_TYPE].value))))


def with_rows(change: Callable[[list[tuple[str, int]]], Sequence[tuple[str, int]]]) -> Callable[[Pairs], Pairs]:
    """A change of tokens and types together."""

    def apply(good: Pairs) -> Pairs:
        rows = change(list(zip(tokens_of(good), good[K.TOKEN_TYPE].value, strict=True)))
        return changed(good, texts(K.LIST, [text for text, _ in rows]), i32s(K.TOKEN_TYPE, [kind for _, kind in rows]))

    return apply


def with_merges(change: Callable[[list[str]], Sequence[str]]) -> Callable[[Pairs], Pairs]:
    """A change of the list of merges."""
    return lambda good: changed(good, texts(K.MERGES, change(list(good[K.MERGES].value))))


def with_template(change: Callable[[str], str]) -> Callable[[Pairs], Pairs]:
    """A change of the chat template."""
    return lambda good: changed(good, text(K.CHAT_TEMPLATE, change(good[K.CHAT_TEMPLATE].value)))


def all_specials(kind: TokenType) -> Callable[[Pairs], Pairs]:
    """All special tokens of another type."""
    return lambda good: retyped(good, dict.fromkeys(specials_of(good), kind))


def exchanged(items: list[str], one: int, other: int) -> list[str]:
    """The list with two items in each other's place."""
    items[one], items[other] = items[other], items[one]
    return items


def replaced(items: list[str], place: int, item: str) -> list[str]:
    """The list with another item at one place."""
    items[place] = item
    return items


def raw(token: str) -> str:
    """A token's text with its bytes as such, U+FFFD where they are no UTF-8."""
    return raw_bytes(token).decode("utf-8", "replace")


def raw_bytes(token: str) -> bytes:
    """The bytes that a token stands for."""
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    return bytes(byte_of[character] for character in token)


def told_by(key: str, token: str, offset: int = 0) -> Callable[[Pairs], Pairs]:
    """A role given to a token, or to one so many ids behind it."""
    return lambda good: changed(good, u32(key, tokens_of(good).index(token) + offset))


def beyond(key: str) -> Callable[[Pairs], Pairs]:
    """A role given to the first id that is none."""
    return lambda good: changed(good, u32(key, len(tokens_of(good))))


def stored(key: str, as_pair: Callable[[str, int], MetadataPair]) -> Callable[[Pairs], Pairs]:
    """The same number with another type."""
    return lambda good: changed(good, as_pair(key, good[key].value))
