"""The tensors of two files held against each other: names, shapes, types and, if asked for, every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from phi4conv.files import PositionedReader, reading
from phi4conv.gguf_file.edit import reopened
from phi4conv.gguf_file.layout import GGUFFile, TensorEntry
from phi4conv.progress import Progress

# Bytes of each file that are held at once.
COMPARED_AT_ONCE = 1 << 22

NOT_ASKED = "not asked for"
UNKNOWN_SIZE = "the type is not known, nor then the size"


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same in both files; None on the side that lacks it.

    Attributes:
        first_byte: Where the bytes differ first, counted from the start of the tensor; None where they are equal or
            were not compared, as they are not when shape or type differ.
    """

    name: str
    a: TensorEntry | None
    b: TensorEntry | None
    first_byte: int | None = None


@dataclass(frozen=True)
class TensorComparison:
    """All tensors of two files.

    Attributes:
        different: Those that differ: in A's order, then those that only B has, in B's.
        equal: How many are the same in name, shape, type and every byte.
        unread: Names of those that are the same but for their bytes, which were not compared, with the reason.
        other_order: Whether those that both have stand in another order.
    """

    different: tuple[TensorDifference, ...]
    equal: int
    unread: tuple[tuple[str, str], ...]
    other_order: bool


@dataclass(frozen=True)
class _Side:
    """One file's data, opened once and kept open."""

    file: GGUFFile
    reader: PositionedReader

    def start(self, entry: TensorEntry) -> int:
        return self.file.data_offset + entry.offset

    def available(self, entry: TensorEntry) -> int:
        """How many of the tensor's bytes are in the file."""
        return max(0, min(entry.size_bytes, self.file.file_size - self.start(entry)))

    def read_into(self, buffer: bytearray, count: int, entry: TensorEntry, offset: int) -> None:
        with reading(self.file.path):
            self.reader.read_into(memoryview(buffer)[:count], self.start(entry) + offset)


def compare_tensors(a: GGUFFile, b: GGUFFile, *, data: bool, one_file: bool, progress: Progress) -> TensorComparison:
    """Hold the tensors of two files against each other.

    data: whether to read bytes, a few megabytes at a time; progress is told of them. one_file: both are the same file
    on the disk, so that bytes at the same place need not be read. Where the tensors lie in each file does not matter.

    Raises:
        FormatError: A file cannot be read, or changes meanwhile.
    """
    ours, theirs = numbered(a.tensors), numbered(b.tensors)
    shared = [key for key in ours if key in theirs]
    alike = {key: (ours[key], theirs[key]) for key in shared if _same_kind(ours[key], theirs[key])}
    unread = {key: reason for key, (entry, _) in alike.items() if (reason := _why_unread(entry, data=data))}
    readable = {key: pair for key, pair in alike.items() if key not in unread}
    if one_file:
        readable = {key: pair for key, pair in readable.items() if _place(a, pair[0]) != _place(b, pair[1])}
    differing = _compare_data(a, b, readable, progress)
    different = [
        TensorDifference(entry.name, entry, theirs.get(key), differing.get(key))
        for key, entry in ours.items()
        if key not in alike or key in differing
    ]
    different += [TensorDifference(entry.name, None, entry) for key, entry in theirs.items() if key not in ours]
    return TensorComparison(
        different=tuple(different),
        equal=len(alike) - len(differing) - len(unread),
        unread=tuple((alike[key][0].name, reason) for key, reason in unread.items()),
        other_order=shared != [key for key in theirs if key in ours],
    )


Key = tuple[str, int]
Pairs = dict[Key, tuple[TensorEntry, TensorEntry]]


def numbered(tensors: Sequence[TensorEntry]) -> dict[Key, TensorEntry]:
    """Tensors by name and, since a damaged file may repeat one, by how often the name has come before."""
    seen: Counter[str] = Counter()
    found = {}
    for entry in tensors:
        found[entry.name, seen[entry.name]] = entry
        seen[entry.name] += 1
    return found


def _same_kind(a: TensorEntry, b: TensorEntry) -> bool:
    return (a.shape, a.qtype) == (b.shape, b.qtype)


def _why_unread(entry: TensorEntry, *, data: bool) -> str:
    """Why the bytes of a tensor are not compared; nothing when they are."""
    if not data:
        return NOT_ASKED
    return "" if isinstance(entry.qtype, GGMLQuantizationType) else UNKNOWN_SIZE


def _place(file: GGUFFile, entry: TensorEntry) -> int:
    return file.data_offset + entry.offset


def _compare_data(a: GGUFFile, b: GGUFFile, pairs: Pairs, progress: Progress) -> dict[Key, int]:
    """For each pair whose bytes differ, where they do first."""
    if not pairs:
        return {}
    left, right = _Side(a, reopened(a)), _Side(b, reopened(b))
    progress.begin(sum(entry.size_bytes for entry, _ in pairs.values()))
    try:
        places = {key: _first_difference(left, right, pair, progress) for key, pair in pairs.items()}
    finally:
        progress.end()
        left.reader.close()
        right.reader.close()
    return {key: place for key, place in places.items() if place is not None}


def _first_difference(
    left: _Side, right: _Side, pair: tuple[TensorEntry, TensorEntry], progress: Progress
) -> int | None:
    """The first byte that differs, or that only one file still has; None when there is none."""
    ours, theirs = pair
    common = min(left.available(ours), right.available(theirs))
    one, other = (bytearray(min(COMPARED_AT_ONCE, common)) for _ in range(2))
    for start in range(0, common, COMPARED_AT_ONCE):
        count = min(COMPARED_AT_ONCE, common - start)
        left.read_into(one, count, ours, start)
        right.read_into(other, count, theirs, start)
        # Beyond count both hold what they held before, and that was equal.
        if one != other:
            progress.advance(ours.size_bytes - start, ours.name)
            return start + int(np.argmax(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)))
        progress.advance(count, ours.name)
    progress.advance(ours.size_bytes - common, ours.name)
    return None if left.available(ours) == right.available(theirs) else common
