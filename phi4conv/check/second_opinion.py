"""A third opinion: the real llama.cpp on what the file's tokenizer was tried on: texts, prompts and ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from gguf.constants import Keys

from phi4conv.check.attribution import Attribution
from phi4conv.check.chats import CHATS
from phi4conv.check.comparison import Comparison, Mismatch, Sample, batches
from phi4conv.check.conversations import rendered
from phi4conv.check.ids import LONGEST_DECODED
from phi4conv.check.mismatch import mismatch_finding
from phi4conv.check.model import Finding, Severity
from phi4conv.check.samples import SampleGroup
from phi4conv.check.template import around, first_difference
from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.llama_cpp import LlamaCpp

CHECK_ID = "tokenizer/llama.cpp"
SHOWN = 50


def ask_llama_cpp(file: GGUFFile, attribution: Attribution, groups: Iterable[SampleGroup]) -> Comparison:
    """Load the file in llama.cpp and hold its answers against those of the file's tokenizer here.

    Compared are texts, the prompts that the file's template makes, and the bytes of every id. Where the two agree
    there is need of no other judgement than the one that is there. Texts that llama.cpp would abort on are not sent.

    Raises:
        EngineError: xllamacpp is not installed, or not the one that is known.
    """
    outcome = Comparison("texts through llama.cpp")
    with LlamaCpp() as llama:
        _ = llama.version
        if loads(llama, file.path, attribution):
            compare_settings(llama, attribution)
            samples = chain(*(group.samples() for group in groups), prompts(file, attribution))
            compare_texts(llama, samples, attribution, outcome)
            compare_pieces(llama, attribution, outcome)
    return outcome


def loads(llama: LlamaCpp, path: Path, attribution: Attribution) -> bool:
    """Whether the file loads both in llama.cpp and here; a finding where the two do not agree."""
    reference = attribution.tokenizer(0)
    try:
        llama.load(path, vocab_only=True)
    except (FormatError, EngineError) as refusal:
        if not isinstance(reference, FormatError):
            attribution.roots.append(disagreement("refuses", "llama.cpp loads the file", refusal.problems[0].found))
        return False
    if isinstance(reference, FormatError):
        attribution.roots.append(disagreement("loads", reference.problems[0].what, "llama.cpp loads the file"))
        return False
    return True


def prompts(file: GGUFFile, attribution: Attribution) -> list[Sample]:
    """The conversations as the file's own template renders them; none without a template, or where it refuses."""
    template = file.text(Keys.Tokenizer.CHAT_TEMPLATE)
    if not template:
        return []
    renderings = rendered(template, attribution.source.vocabulary)
    return [
        Sample(chat.name, rendering.text)
        for chat, rendering in zip(CHATS, renderings, strict=True)
        if rendering.text is not None
    ]


def compare_texts(llama: LlamaCpp, samples: Iterable[Sample], attribution: Attribution, outcome: Comparison) -> None:
    """All texts, in batches, and one finding for those that become other tokens."""
    for batch in batches(samples):
        compare_batch(llama, batch, attribution, outcome)
    if outcome.mismatches:
        message = f"{outcome.wrong:,} of {outcome.texts:,} texts become other tokens in llama.cpp than phi4conv expects"
        shown = outcome.mismatches[0]
        attribution.roots.append(mismatch_finding(CHECK_ID, message, shown, attribution.side(0)))


def compare_pieces(llama: LlamaCpp, attribution: Attribution, outcome: Comparison) -> None:
    """The bytes of every id but those of hostile length; each id counts as a text of one token."""
    tokenizer = attribution.side(0).tokenizer
    ids = [token_id for token_id, text in enumerate(tokenizer.vocab.texts) if len(text) <= LONGEST_DECODED]
    outcome.texts += len(ids)
    outcome.tokens += len(ids)
    try:
        theirs = llama.pieces(ids)
    except EngineError:
        outcome.wrong += len(ids)
        attribution.roots.append(disagreement("pieces", "the bytes of every id", "llama.cpp ends its process"))
        return
    expected = tokenizer.pieces(ids)
    wrong = [row for row in range(len(ids)) if theirs[row] != expected[row]]
    outcome.wrong += len(wrong)
    if wrong:
        mine, other = (side[wrong[0]].decode("utf-8", "backslashreplace") for side in (expected, theirs))
        place = first_difference(mine, other)
        found = disagreement("pieces", around(mine, place), around(other, place))
        message = f"{len(wrong):,} of {len(ids):,} ids stand for other bytes in llama.cpp than phi4conv expects"
        attribution.roots.append(replace(found, message=message, where=f"id {ids[wrong[0]]}"))


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
