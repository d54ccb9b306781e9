"""Two vocabularies held against each other, in the words of a vocabulary rather than of its keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gguf import Keys, TokenType

from phi4conv.diff.values import ArrayDifference, array_difference
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.inspect import SpecialToken, summarise

_TYPE_NAMES = {int(kind): kind.name for kind in TokenType}


@dataclass(frozen=True)
class ListDifference:
    """The tokens or the merges of two files: where they differ, and which texts only one of them has at all."""

    array: ArrayDifference
    only_a: tuple[str, ...]  # in A's order; a text that stands once more in A than in B counts
    only_b: tuple[str, ...]


@dataclass(frozen=True)
class TypeChange:
    """Tokens that are of one type in A and of another in B; both sides by name, or "no type" where a list ends."""

    a: str
    b: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class SpecialDifference:
    """A role whose id, or the text of whose id, is not the same in both files; None where a file has no such role."""

    role: str  # "eos" of tokenizer.ggml.eos_token_id
    a: SpecialToken | None
    b: SpecialToken | None


@dataclass(frozen=True)
class VocabularyDifference:
    """What differs between two vocabularies; None and empty where they agree."""

    tokens: ListDifference | None
    merges: ListDifference | None
    types: tuple[TypeChange, ...]  # most tokens first
    special: tuple[SpecialDifference, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The metadata keys whose values it tells of."""
        names = Keys.Tokenizer
        lists = {names.LIST: self.tokens, names.MERGES: self.merges, names.TOKEN_TYPE: self.types}
        return frozenset(
            {key for key, found in lists.items() if found}
            | {f"tokenizer.ggml.{difference.role}_token_id" for difference in self.special}
        )


def vocabulary_difference(a: GGUFFile, b: GGUFFile) -> VocabularyDifference:
    """Hold the vocabularies of two files against each other."""
    keys = Keys.Tokenizer
    return VocabularyDifference(
        tokens=_list_difference(a.strings(keys.LIST), b.strings(keys.LIST)),
        merges=_list_difference(a.strings(keys.MERGES), b.strings(keys.MERGES)),
        types=_type_changes(a.integers(keys.TOKEN_TYPE), b.integers(keys.TOKEN_TYPE)),
        special=tuple(_special_differences(a, b)),
    )


def _list_difference(a: Sequence[str], b: Sequence[str]) -> ListDifference | None:
    array = array_difference(a, b)
    if not array.indices:
        return None
    ours, theirs = Counter(a), Counter(b)
    return ListDifference(array, tuple((ours - theirs).elements()), tuple((theirs - ours).elements()))


def _type_changes(a: Sequence[int], b: Sequence[int]) -> tuple[TypeChange, ...]:
    changes: dict[tuple[str, str], list[int]] = {}
    for item in array_difference(a, b).items():
        changes.setdefault((_type_name(item.a), _type_name(item.b)), []).append(item.index)
    by_count = sorted(changes.items(), key=lambda change: len(change[1]), reverse=True)
    return tuple(TypeChange(*names, tuple(ids)) for names, ids in by_count)


def _type_name(number: int | None) -> str:
    return "no type" if number is None else _TYPE_NAMES.get(number, f"type {number}")


def _special_differences(a: GGUFFile, b: GGUFFile) -> Iterator[SpecialDifference]:
    ours, theirs = ({token.role: token for token in _special_tokens(file)} for file in (a, b))
    for role in {**ours, **theirs}:
        if ours.get(role) != theirs.get(role):
            yield SpecialDifference(role, ours.get(role), theirs.get(role))


def _special_tokens(file: GGUFFile) -> Sequence[SpecialToken]:
    vocabulary = summarise(file).vocabulary
    return vocabulary.special if vocabulary else ()
