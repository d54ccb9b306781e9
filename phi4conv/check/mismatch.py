"""A text that became other tokens, shown by the neighbourhood of the first wrong one."""

from __future__ import annotations

from collections.abc import Sequence

from phi4conv.check.comparison import FileSide, Mismatch
from phi4conv.check.model import Finding, Severity

SHOWN_TOKENS = 5
SHOWN_CHARACTERS = 60


def mismatch_finding(check_id: str, message: str, shown: Mismatch, side: FileSide) -> Finding:
    """A finding that shows one text by the neighbourhood of its first wrong token."""
    source = side.source
    place = next(
        (at for at, (one, two) in enumerate(zip(shown.expected, shown.actual, strict=False)) if one != two),
        min(len(shown.expected), len(shown.actual)),
    )
    expected = tokens_from(shown.expected, place, source.pieces(shown.expected))
    actual = shown.reason or tokens_from(shown.actual, place, side.tokenizer.pieces(shown.actual))
    return Finding(
        check_id, Severity.FAIL, "different", message, f"{shown.item.name}: {cut(shown.item.text)}", expected, actual
    )


def cut(text: str, longest: int = SHOWN_CHARACTERS) -> str:
    """A text as Python writes it, without the end of a long one."""
    return repr(text) if len(text) <= longest else f"{text[:longest]!r}…"


def tokens_from(ids: Sequence[int], place: int, pieces: Sequence[bytes]) -> str:
    """Some tokens from the one before a place on, each with its id.

    >>> tokens_from([1, 2, 3], 1, [b"a", b" b", b"c"])
    "token 1 on: 'a' 1 | ' b' 2 | 'c' 3"
    """
    start = max(0, place - 1)
    shown = [
        f"{piece.decode('utf-8', 'backslashreplace')!r} {token_id}"
        for token_id, piece in zip(ids[start:], pieces[start:], strict=True)
    ]
    more = " | …" if len(shown) > SHOWN_TOKENS else ""
    return f"token {start + 1} on: " + (" | ".join(shown[:SHOWN_TOKENS]) or "nothing") + more
