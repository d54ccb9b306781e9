"""Ids into text, both ways: one by one, and in the rows that texts are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from gguf import TokenType

from phi4conv.check.attribution import Attribution
from phi4conv.check.comparison import Comparison, Sample
from phi4conv.check.model import Finding, Severity
from phi4conv.reference.tokenizer import FileTokenizer

NO_SUCH_ID = "(no such id)"
TOO_LONG = "(a token that is too long)"

# llama.cpp's complaint about a character beyond the byte alphabet repeats the whole token: a hostile one, decoded,
# fills the memory. The longest token of Phi-4 has 128 characters.
LONGEST_DECODED = 4096

# Of a sequence of ids: its name for people.
Named = tuple[str, Sequence[int]]


def compare_ids(attribution: Attribution, first: int) -> Comparison:
    """Every id that stands for a token, by itself."""
    types = attribution.source.vocabulary.types
    used = [(f"id {token_id}", [token_id]) for token_id, kind in enumerate(types) if kind != TokenType.UNUSED]
    message = "{wrong:,} of {all:,} ids stand for another text: what the model says is printed wrong"
    return compare_decoding("ids decoded", used, attribution, first, check_id="tokenizer/ids", message=message)


def compare_sequences(samples: Sequence[Sample], attribution: Attribution, first: int) -> Comparison:
    """Texts through the source's tokenizer into ids and back.

    The pieces are joined, as llama.cpp's server does; llama_detokenize also drops spaces before punctuation where the
    split regex is dbrx.
    """
    ids = attribution.source.encode([sample.text for sample in samples], parse_special=True)
    named = list(zip((sample.name for sample in samples), ids, strict=True))
    message = "{wrong:,} of {all:,} rows of ids become other texts"
    check_id = "tokenizer/decoded-texts"
    return compare_decoding("texts decoded", named, attribution, first, check_id=check_id, message=message)


def compare_decoding(
    name: str, rows: Sequence[Named], attribution: Attribution, first: int, *, check_id: str, message: str
) -> Comparison:
    """Rows of ids into texts, both ways, and what each wrong one is due to."""
    outcome = Comparison(name, texts=len(rows), tokens=sum(len(ids) for _, ids in rows))
    expected, outcome.source_seconds = timed(attribution.source.decode, rows)
    left: list[int] = []
    shown: list[str] = []

    def finding(wrong: Sequence[int]) -> Finding:
        place = wrong[0]
        text = message.format(wrong=len(wrong), all=len(rows))
        return Finding(
            check_id, Severity.FAIL, "different", text, rows[place][0], repr(expected[place]), repr(shown[place])
        )

    for number in attribution.loadable(first):
        actual, seconds = timed(partial(decoded, attribution.side(number).tokenizer), rows)
        wrong = [row for row in range(len(rows)) if actual[row] != expected[row]]
        if number == first:
            outcome.file_seconds, outcome.wrong, left, shown = seconds, len(wrong), wrong, actual
        elif fixed := sorted(set(left) - set(wrong)):
            attribution.blame(number, finding(fixed))
            left = wrong
        if not left:
            break
    if left:
        attribution.blame(0, finding(left))
    return outcome


def timed(decode: Callable[[Sequence[int]], str], rows: Sequence[Named]) -> tuple[list[str], float]:
    """The text of each row, and the seconds for all."""
    started = time.perf_counter()
    return [decode(ids) for _, ids in rows], time.perf_counter() - started


def decoded(tokenizer: FileTokenizer, ids: Sequence[int]) -> str:
    """The text of a row of ids in a file, U+FFFD for bytes that are no UTF-8."""
    texts = tokenizer.vocab.texts
    if any(token_id >= len(texts) for token_id in ids):
        return NO_SUCH_ID
    if any(len(texts[token_id]) > LONGEST_DECODED for token_id in ids):
        return TOO_LONG
    return b"".join(tokenizer.pieces(ids)).decode("utf-8", "replace")
