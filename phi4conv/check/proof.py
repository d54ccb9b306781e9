"""The proof that a file's tokenizer is the one that its model was trained with.

First the metadata (diagnosis), then ids into text and texts into ids, through the source's tokenizer and through the
file's as llama.cpp runs it. Where the two part, the file is mended defect by defect, in memory, and the texts are
tried again: a text that comes right is a consequence of the defect mended last. What stays wrong with everything
mended is a defect of its own, so that nothing hides behind another fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from phi4conv.check.attribution import Attribution, note_refusal
from phi4conv.check.case import Case
from phi4conv.check.comparison import Comparison
from phi4conv.check.conversations import compare_chats
from phi4conv.check.diagnosis import Diagnosis, diagnose
from phi4conv.check.expectation import Expectation
from phi4conv.check.groups import compare_group
from phi4conv.check.ids import compare_ids, compare_sequences
from phi4conv.check.model import Finding, Severity, worst
from phi4conv.check.samples import built_in_group, fuzz_groups, own_texts_group, user_groups
from phi4conv.check.second_opinion import ask_llama_cpp
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.progress import Progress, Silent
from phi4conv.vocab import digest


@dataclass(frozen=True)
class ProofOptions:
    """What to try beyond the ids and the built-in texts."""

    user_texts: tuple[tuple[str, str], ...] = ()  # name and text
    fuzz: int = 0  # number of random texts
    seed: int = 0
    llama_cpp: bool = False  # ask the real one, too


@dataclass
class Proof:
    """What was compared, and what was found."""

    file: GGUFFile
    expected: Expectation
    diagnosis: Diagnosis
    findings: tuple[Finding, ...] = ()
    comparisons: list[Comparison] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether nothing worse than a warning was found."""
        return worst(self.findings) < Severity.FAIL

    @property
    def digests(self) -> dict[str, tuple[str, str]]:
        """sha256 of tokens and merges: expected and the file's."""
        right, case = self.expected.vocabulary, self.diagnosis.cases[0]
        return {
            "tokens": (right.tokens_digest, safe_digest(case.texts)),
            "merges": (right.merges_digest, safe_digest(case.merges)),
        }


def safe_digest(items: Iterable[str]) -> str:
    """The digest of texts of a file, which need not be UTF-8."""
    return digest(item.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for item in items)


def prove(
    file: GGUFFile, expected: Expectation, options: ProofOptions | None = None, progress: Progress | None = None
) -> Proof:
    """Compare a file's tokenizer with the expected one in every way.

    Raises:
        EngineError: The real llama.cpp was asked for and is not there.
    """
    started = time.perf_counter()
    options = options or ProofOptions()
    diagnosis = diagnose(Case(file, expected))
    attribution = Attribution(diagnosis, expected.source)
    proof = Proof(file, expected, diagnosis, notes=expected.notes)
    first = attribution.first_loadable()
    note_refusal(attribution, first)
    if first is not None:
        proof.comparisons += compare_all(attribution, first, options, progress or Silent())
    proof.findings = attribution.findings()
    proof.seconds = time.perf_counter() - started
    return proof


def compare_all(
    attribution: Attribution, first: int, options: ProofOptions, progress: Progress
) -> Iterator[Comparison]:
    """Every comparison, cheapest first. first is the number of the first case that llama.cpp would load."""
    source = attribution.source
    texts = built_in_group(source)
    yield compare_ids(attribution, first)
    yield compare_group(own_texts_group(source), attribution, first)
    yield compare_group(texts, attribution, first)
    yield compare_sequences([sample for sample in texts.samples() if sample.parse_special], attribution, first)
    if (chats := compare_chats(attribution, first)) is not None:
        yield chats
    asked_for = [*user_groups(options.user_texts), *fuzz_groups(options.fuzz, options.seed, source)]
    for group in asked_for:
        progress.note(f"comparing {group.name} ...")
        yield compare_group(group, attribution, first)
    if options.llama_cpp:
        progress.note("asking llama.cpp ...")
        groups = [own_texts_group(source), texts, *asked_for]
        yield ask_llama_cpp(attribution.diagnosis.cases[0].file, attribution, groups)
