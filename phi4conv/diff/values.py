"""Two metadata values held against each other: where they differ first, and in how many items."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gguf import GGUFValueType

from phi4conv.gguf_file.layout import InnerArray, MetadataPair, Numbers

# Characters shown ahead of the first difference of two texts, and from it on.
CONTEXT_BEFORE = 30
CONTEXT_AFTER = 40

Kind = Literal["only-in-a", "only-in-b", "type", "value"]


@dataclass(frozen=True)
class ItemDifference:
    """One index of two arrays; a side is None where its array has ended."""

    index: int
    a: Any
    b: Any


@dataclass(frozen=True)
class ArrayDifference:
    """Two arrays and the indices, in order, at which they differ or only one of them has an item."""

    a: Sequence[Any]
    b: Sequence[Any]
    indices: Sequence[int]

    def items(self, most: int | None = None) -> Iterator[ItemDifference]:
        """The first differing items, at most so many; all by default."""
        for index in self.indices[:most]:
            yield ItemDifference(index, *(side[index] if index < len(side) else None for side in (self.a, self.b)))


@dataclass(frozen=True)
class TextDifference:
    """Where two texts differ first, and what stands around that place in each."""

    position: int  # characters ahead of it
    line: int  # counted from 1, in the part that both share
    column: int  # counted from 1
    a: str
    b: str


@dataclass(frozen=True)
class PairDifference:
    """A key that only one file has, or that has another type or value in each.

    array is there when both sides are arrays, text when both are strings; both say where the values differ, if they do.
    """

    key: str
    a: MetadataPair | None
    b: MetadataPair | None
    array: ArrayDifference | None = None
    text: TextDifference | None = None

    @property
    def kind(self) -> Kind:
        """What differs first: presence, then type, then value."""
        if self.a is None or self.b is None:
            return "only-in-b" if self.a is None else "only-in-a"
        return "value" if (self.a.type, self.a.item_type) == (self.b.type, self.b.item_type) else "type"


def pair_differences(a: Mapping[str, MetadataPair], b: Mapping[str, MetadataPair]) -> Iterator[PairDifference]:
    """Every key on which two files differ: in A's order, then those that only B has, in B's.

    Floats are compared by their bits: -0 is not 0, and a NaN is itself.
    """
    for key, pair in a.items():
        if key not in b:
            yield PairDifference(key, pair, None)
        elif found := _pair_difference(pair, b[key]):
            yield found
    yield from (PairDifference(key, None, pair) for key, pair in b.items() if key not in a)


def _pair_difference(a: MetadataPair, b: MetadataPair) -> PairDifference | None:
    same_type = (a.type, a.item_type) == (b.type, b.item_type)
    if a.type == b.type == GGUFValueType.ARRAY:
        array = array_difference(a.value, b.value)
        return None if same_type and not array.indices else PairDifference(a.key, a, b, array=array)
    if a.type == b.type == GGUFValueType.STRING:
        return None if a.value == b.value else PairDifference(a.key, a, b, text=text_difference(a.value, b.value))
    return None if same_type and same(a.value, b.value) else PairDifference(a.key, a, b)


def array_difference(a: Sequence[Any], b: Sequence[Any]) -> ArrayDifference:
    """The indices at which two arrays differ.

    >>> list(array_difference([1, 2, 3], [1, 5]).items())
    [ItemDifference(index=1, a=2, b=5), ItemDifference(index=2, a=3, b=None)]
    """
    common = min(len(a), len(b))
    rest = range(common, max(len(a), len(b)))
    return ArrayDifference(a, b, [*_differing(a, b, common), *rest])


def _differing(a: Sequence[Any], b: Sequence[Any], common: int) -> list[int]:
    if isinstance(a, Numbers) and isinstance(b, Numbers) and a.values.dtype == b.values.dtype:
        words = f"u{a.values.dtype.itemsize}"
        ours, theirs = (np.ascontiguousarray(side.values[:common]).view(words) for side in (a, b))
        return [int(index) for index in np.flatnonzero(ours != theirs)]
    # zip stops at the shorter one.
    return [index for index, (one, other) in enumerate(zip(a, b, strict=False)) if not same(one, other)]


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same: floats bit by bit, arrays inside arrays item by item.

    >>> same(0.0, -0.0), same(float("nan"), float("nan")), same(1, 1.0)
    (False, True, True)
    """
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, InnerArray) and isinstance(b, InnerArray):
        return a.item_type == b.item_type and not array_difference(a.items, b.items).indices
    return bool(a == b)


def text_difference(a: str, b: str) -> TextDifference:
    r"""The first place where two texts differ, with what is around it; a cut is marked with an ellipsis.

    >>> text_difference("one\ntwo", "one\nten")
    TextDifference(position=5, line=2, column=2, a='one\ntwo', b='one\nten')
    """
    position = _common_length(a, b)
    shared = a[:position]
    line_start = shared.rfind("\n") + 1
    return TextDifference(
        position, shared.count("\n") + 1, position - line_start + 1, _around(a, position), _around(b, position)
    )


def _common_length(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _around(text: str, position: int) -> str:
    start, stop = max(0, position - CONTEXT_BEFORE), position + CONTEXT_AFTER
    return f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
