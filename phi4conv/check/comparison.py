"""Texts through both tokenizers: which come out alike, which differ in a known way, and which are wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from phi4conv.check.known_differences import KnownDifferences
from phi4conv.hf.source import SourceTokenizer
from phi4conv.reference.bpe import BPE
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp
from phi4conv.reference.tokenizer import FileTokenizer

# Of a long row of wrong texts these are kept, to be shown and tried again; all are counted.
KEPT_MISMATCHES = 2_000
BATCH_TEXTS = 8_192


@dataclass(frozen=True)
class Sample:
    """A text to be tokenized, with a name for people."""

    name: str
    text: str
    parse_special: bool = True
    add_special: bool = False


@dataclass(frozen=True)
class Mismatch:
    """A text that the file's tokenizer reads otherwise than the source's."""

    item: Sample
    expected: tuple[int, ...]
    actual: tuple[int, ...]
    reason: str = ""  # why there are no actual tokens: llama.cpp would end


@dataclass
class Comparison:
    """The outcome of one group of texts. Times are in seconds, for all texts of the group."""

    name: str
    texts: int = 0
    tokens: int = 0  # of the source
    wrong: int = 0
    known: Counter[str] = field(default_factory=Counter)
    mismatches: list[Mismatch] = field(default_factory=list)
    source_seconds: float = 0.0
    file_seconds: float = 0.0

    @property
    def same(self) -> int:
        """How many texts both sides read alike."""
        return self.texts - self.wrong - sum(self.known.values())


class FileSide:
    """The file's tokenizer, and what is known of its differences from the source."""

    def __init__(self, tokenizer: FileTokenizer, source: SourceTokenizer) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.known = KnownDifferences(source, tokenizer.vocab) if isinstance(tokenizer, BPE) else None

    def encode(self, item: Sample) -> tuple[tuple[int, ...], str]:
        """The ids of a text; none, and why, where llama.cpp would end."""
        try:
            ids = self.tokenizer.encode(item.text, add_special=item.add_special, parse_special=item.parse_special)
        except RefusedByLlamaCpp as refusal:
            return (), refusal.problems[0].what
        return tuple(ids), ""

    def explain(self, item: Sample, right: Sequence[int]) -> str | None:
        """The known difference behind a text that both sides read otherwise; None when there is none."""
        if self.known is None:
            return None
        return self.known.explain(
            item.text, list(right), parse_special=item.parse_special, add_special=item.add_special
        )

    def recheck(self, mismatch: Mismatch) -> bool:
        """Whether a text that another tokenizer got wrong comes out right with this one."""
        ids, reason = self.encode(mismatch.item)
        if ids == mismatch.expected and not reason:
            return True
        return not reason and self.explain(mismatch.item, mismatch.expected) is not None


def compare(name: str, items: Iterable[Sample], source: SourceTokenizer, side: FileSide) -> Comparison:
    """Run texts through both sides."""
    outcome = Comparison(name)
    for batch in batches(items):
        started = time.perf_counter()
        expected = source_ids(batch, source)
        between = time.perf_counter()
        actual = [side.encode(item) for item in batch]
        outcome.source_seconds += between - started
        outcome.file_seconds += time.perf_counter() - between
        outcome.texts += len(batch)
        outcome.tokens += sum(map(len, expected))
        for item, right, (ids, reason) in zip(batch, expected, actual, strict=True):
            if ids != right or reason:
                note_difference(outcome, Mismatch(item, right, ids, reason), side)
    return outcome


def note_difference(outcome: Comparison, mismatch: Mismatch, side: FileSide) -> None:
    """Count a difference, as known or as wrong."""
    known = None if mismatch.reason else side.explain(mismatch.item, mismatch.expected)
    if known:
        outcome.known[known] += 1
        return
    outcome.wrong += 1
    if len(outcome.mismatches) < KEPT_MISMATCHES:
        outcome.mismatches.append(mismatch)


def batches(items: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The items in lists of bounded length."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        yield batch


def source_ids(batch: Sequence[Sample], source: SourceTokenizer) -> list[tuple[int, ...]]:
    """The source's ids of each text, which may ask for different treatment."""
    answers: list[tuple[int, ...]] = [()] * len(batch)
    for parse_special in (True, False):
        for add_special in (True, False):
            chosen = [
                index
                for index, item in enumerate(batch)
                if (item.parse_special, item.add_special) == (parse_special, add_special)
            ]
            texts = [batch[index].text for index in chosen]
            if texts:
                ids = source.encode(texts, parse_special=parse_special, add_special=add_special)
                for index, answer in zip(chosen, ids, strict=True):
                    answers[index] = tuple(answer)
    return answers
