"""A third opinion: the real llama.cpp on the texts that the file's tokenizer was tried on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from phi4conv.check.attribution import Attribution
from phi4conv.check.comparison import Comparison, Mismatch, Sample, batches
from phi4conv.check.mismatch import mismatch_finding
from phi4conv.check.model import Finding, Severity
from phi4conv.check.samples import SampleGroup
from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.llama_cpp import LlamaCpp

CHECK_ID = "tokenizer/llama.cpp"
SHOWN = 50


def ask_llama_cpp(file: GGUFFile, attribution: Attribution, groups: Iterable[SampleGroup]) -> Comparison:
    """Load the file in llama.cpp and hold its tokens against those of the file's tokenizer here.

    A text on which the two agree needs no other judgement than the one that it has. Texts that llama.cpp would
    abort on are not sent.

    Raises:
        EngineError: xllamacpp is not installed, or not the one that is known.
    """
    outcome = Comparison("texts through llama.cpp")
    reference = attribution.tokenizer(0)
    with LlamaCpp() as llama:
        _ = llama.version
        try:
            llama.load(file.path, vocab_only=True)
        except (FormatError, EngineError) as refusal:
            if not isinstance(reference, FormatError):
                attribution.roots.append(disagreement("refuses", "llama.cpp loads the file", refusal.problems[0].found))
            return outcome
        if isinstance(reference, FormatError):
            attribution.roots.append(disagreement("loads", reference.problems[0].what, "llama.cpp loads the file"))
            return outcome
        compare_settings(llama, attribution)
        for group in groups:
            for batch in batches(group.samples()):
                compare_batch(llama, batch, attribution, outcome)
    if outcome.mismatches:
        attribution.roots.append(
            mismatch_finding(
                CHECK_ID,
                f"{outcome.wrong:,} of {outcome.texts:,} texts become other tokens in llama.cpp than phi4conv expects",
                outcome.mismatches[0],
                attribution.side(0),
            )
        )
    return outcome


def compare_settings(llama: LlamaCpp, attribution: Attribution) -> None:
    """Special ids and the end of generation, as llama.cpp settled on them."""
    reference = attribution.side(0).tokenizer.vocab
    ends = llama.end_of_generation()
    if ends != reference.end_of_generation:
        attribution.roots.append(
            disagreement("end-of-generation", str(sorted(reference.end_of_generation)), str(sorted(ends)))
        )
    for role, token_id in llama.special_ids().items():
        if role in {"bos", "eos", "eot", "nl", "pad"} and reference.special.get(role) != token_id:
            attribution.roots.append(disagreement(f"{role}-id", str(reference.special.get(role)), str(token_id)))


def compare_batch(llama: LlamaCpp, batch: Sequence[Sample], attribution: Attribution, outcome: Comparison) -> None:
    """One batch of texts through llama.cpp and through the file's tokenizer here."""
    path = attribution.diagnosis.cases[0].file.path
    side = attribution.side(0)
    answers = [(item, *side.encode(item)) for item in batch]
    for parse_special in (True, False):
        for add_special in (True, False):
            chosen = [
                (item, ids)
                for item, ids, reason in answers
                if not reason and (item.parse_special, item.add_special) == (parse_special, add_special)
            ]
            outcome.texts += len(chosen)
            for (item, ids), theirs in zip(chosen, survived(llama, [item for item, _ in chosen], path), strict=True):
                outcome.tokens += len(theirs or ())
                if theirs is None or tuple(theirs) != ids:
                    outcome.wrong += 1
                    if len(outcome.mismatches) < SHOWN:
                        reason = "llama.cpp ends its process" if theirs is None else ""
                        outcome.mismatches.append(Mismatch(item, ids, tuple(theirs or ()), reason))


def survived(llama: LlamaCpp, items: Sequence[Sample], path: Path) -> list[list[int] | None]:
    """llama.cpp's ids of texts that ask for the same treatment; None for one that ends its process.

    A batch that it does not survive is cut in two, until the text is found.
    """
    if not items:
        return []
    try:
        return [
            *llama.tokenize(
                [item.text for item in items], add_special=items[0].add_special, parse_special=items[0].parse_special
            )
        ]
    except EngineError:
        llama.load(path, vocab_only=True)
        if len(items) == 1:
            return [None]
    middle = len(items) // 2
    return survived(llama, items[:middle], path) + survived(llama, items[middle:], path)


def disagreement(code: str, expected: str, actual: str) -> Finding:
    """llama.cpp does otherwise than phi4conv expects of it: one of the two is wrong about this file."""
    message = "the installed llama.cpp does otherwise with this file than phi4conv expects of it"
    return Finding(CHECK_ID, Severity.FAIL, code, message, "", expected, actual)
