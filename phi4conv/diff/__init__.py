"""What `phi4conv diff` tells of two GGUF files: metadata, vocabulary, tensors and the container, as plain values.

Sides are called A and B. What carries no meaning is mentioned and makes no difference: the order of keys and tensors,
the places of the data, the size of the file. What weights that differ mean for the model is not examined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from phi4conv.diff.tensors import TensorComparison, compare_tensors
from phi4conv.diff.values import PairDifference, pair_differences
from phi4conv.diff.vocabulary import VocabularyDifference, vocabulary_difference
from phi4conv.gguf_file.layout import Defect, GGUFFile
from phi4conv.progress import Progress, Silent


@dataclass(frozen=True)
class Fact:
    """Something about the file as a whole that is not the same in both."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Difference:
    """Two files held against each other.

    Attributes:
        a: The first file.
        b: The second one.
        one_file: Both names lead to one file on the disk.
        data: Whether the tensors' bytes were to be compared.
        container: Facts that differ.
        defects_a: Defects of the format that only A has, by code and place.
        defects_b: Those that only B has.
        metadata: The keys that differ.
        other_key_order: Whether the keys that both have stand in another order.
        vocabulary: The same differences in the words of a vocabulary.
        tensors: The tensors.
    """

    a: GGUFFile
    b: GGUFFile
    one_file: bool
    data: bool
    container: tuple[Fact, ...]
    defects_a: tuple[Defect, ...]
    defects_b: tuple[Defect, ...]
    metadata: tuple[PairDifference, ...]
    other_key_order: bool
    vocabulary: VocabularyDifference
    tensors: TensorComparison

    @property
    def equal(self) -> bool:
        """Whether nothing that was compared differs; never of two files of which one cannot be read to its end."""
        if self.metadata or self.tensors.different or self.container or self.defects_a or self.defects_b:
            return False
        return self.one_file or (self.a.header_complete and self.b.header_complete)

    @property
    def verdict(self) -> str:
        """One line: what is equal and what is not."""
        text = ", ".join(_in_words(self))
        if self.equal:
            text = f"equal: {'one and the same file' if self.one_file else text}"
        notes = [*_notes(self)]
        return f"{text} ({'; '.join(notes)})" if notes else text


def compare(a: GGUFFile, b: GGUFFile, *, data: bool = True, progress: Progress | None = None) -> Difference:
    """Hold two files against each other.

    data: whether to compare the tensors' bytes, which are read once; progress is told of them.

    Raises:
        FormatError: A file's data cannot be read, or change meanwhile.
    """
    one_file = _one_file(a, b)
    ours, theirs = list(a.metadata), list(b.metadata)
    return Difference(
        a=a,
        b=b,
        one_file=one_file,
        data=data,
        container=tuple(_facts(a, b)),
        defects_a=_only(a.defects, b.defects),
        defects_b=_only(b.defects, a.defects),
        metadata=tuple(pair_differences(a.metadata, b.metadata)),
        other_key_order=[key for key in ours if key in b.metadata] != [key for key in theirs if key in a.metadata],
        vocabulary=vocabulary_difference(a, b),
        tensors=compare_tensors(a, b, data=data, one_file=one_file, progress=progress or Silent()),
    )


def _one_file(a: GGUFFile, b: GGUFFile) -> bool:
    try:
        return a.path.samefile(b.path)
    except OSError:
        return False


def _facts(a: GGUFFile, b: GGUFFile) -> Iterator[Fact]:
    facts = {
        "version": (str(a.version), str(b.version)),
        "byte order": (a.byte_order, b.byte_order),
        "alignment": (f"{a.alignment} bytes", f"{b.alignment} bytes"),
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            yield Fact(name, ours, theirs)


def _only(defects: tuple[Defect, ...], others: tuple[Defect, ...]) -> tuple[Defect, ...]:
    """The defects that are not among the others, by code and place."""
    left = Counter((defect.code, defect.where) for defect in others)
    found = []
    for defect in defects:
        left[defect.code, defect.where] -= 1
        if left[defect.code, defect.where] < 0:
            found.append(defect)
    return tuple(found)


def _in_words(difference: Difference) -> Iterator[str]:
    """What is the same, then what is not."""
    said = (_metadata_in_words(difference), _tensors_in_words(difference), _container_in_words(difference))
    for same in (True, False):
        yield from (text for is_same, text in said if text and is_same == same)


def _metadata_in_words(difference: Difference) -> tuple[bool, str]:
    count = len(difference.metadata)
    if not count:
        return True, "same metadata"
    return False, f"other metadata: {_counted(count, 'key')}"


def _tensors_in_words(difference: Difference) -> tuple[bool, str]:
    tensors = difference.tensors
    names = {entry.name for file in (difference.a, difference.b) for entry in file.tensors}
    if not names:
        return True, "no tensors"
    if tensors.different:
        return False, f"other tensors: {len(tensors.different)} of {len(names)}"
    return True, "same names, shapes and types of tensors" if tensors.unread else "same tensors"


def _container_in_words(difference: Difference) -> tuple[bool, str]:
    names = [fact.name for fact in difference.container]
    if difference.defects_a or difference.defects_b:
        names.append("defects of the format")
    return (False, f"other container: {', '.join(names)}") if names else (True, "")


def _notes(difference: Difference) -> Iterator[str]:
    """What qualifies the verdict."""
    incomplete = [side for side, file in (("A", difference.a), ("B", difference.b)) if not file.header_complete]
    if incomplete and not difference.equal:
        yield f"as far as the header of {' and '.join(incomplete)} can be read"
    unread = len(difference.tensors.unread)
    if unread and not difference.one_file:
        yield f"the bytes of {_counted(unread, 'tensor')} were not compared"
    if difference.equal and difference.tensors.other_order:
        yield "tensors in another order"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
