"""A proof as a document of JSON's types, and its verdict in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phi4conv.check.comparison import Comparison
from phi4conv.check.model import Finding, Severity
from phi4conv.check.proof import Proof


def verdict(proof: Proof) -> str:
    """Whether the tokenizer is right, and what else there is to look at."""
    failed = sum(finding.severity >= Severity.FAIL for finding in proof.findings)
    warned = sum(finding.severity == Severity.WARN for finding in proof.findings)
    if failed:
        return f"the tokenizer is wrong, {counted(failed, 'defect')}"
    return "the tokenizer is right" + (f", {counted(warned, 'warning')}" if warned else "")


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "defect"), counted(2, "defect")
    ('1 defect', '2 defects')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"


def proof_document(proof: Proof) -> dict[str, Any]:
    """The content of the phi4conv.verify-tokenizer/1 document."""
    return {
        "file": str(proof.file.path),
        "source": {"kind": proof.expected.origin.name.lower(), "origin": proof.expected.origin_text},
        "verdict": {"right": proof.is_right, "text": verdict(proof)},
        "notes": list(proof.notes),
        "findings": [finding_document(finding) for finding in proof.findings],
        "digests": {
            name: {"expected": expected, "actual": actual, "equal": expected == actual}
            for name, (expected, actual) in proof.digests.items()
        },
        "comparisons": [comparison_document(comparison) for comparison in proof.comparisons],
        "seconds": round(proof.seconds, 3),
    }


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding with everything below it."""
    return {
        "id": finding.id,
        "severity": finding.severity.name,
        "code": finding.code,
        "message": finding.message,
        "where": finding.where,
        "expected": finding.expected,
        "actual": finding.actual,
        "remedy": finding.remedy,
        "override": finding.override,
        "repairs": [change.key for change in finding.changes],
        "consequences": [finding_document(consequence) for consequence in finding.consequences],
    }


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The figures of one group, and the first of the texts that came out wrong; of ids and chats none is shown."""
    shown = comparison.mismatches[:MISMATCHES_IN_DOCUMENT]
    return {
        "name": comparison.name,
        "texts": comparison.texts,
        "tokens": comparison.tokens,
        "same": comparison.same,
        "known_differences": dict(comparison.known),
        "wrong": comparison.wrong,
        "source_seconds": round(comparison.source_seconds, 3),
        "file_seconds": round(comparison.file_seconds, 3),
        "mismatches": [
            {
                "name": mismatch.item.name,
                "text": mismatch.item.text,
                "parse_special": mismatch.item.parse_special,
                "expected": list(mismatch.expected),
                "actual": list(mismatch.actual),
                "reason": mismatch.reason,
            }
            for mismatch in shown
        ],
        "mismatches_left_out": comparison.wrong - len(shown),
    }


MISMATCHES_IN_DOCUMENT = 100


def tokens_per_second(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """How fast both sides tokenized: the source's tokens by the time of the source and of the file."""
    timed = [comparison for comparison in comparisons if comparison.source_seconds and comparison.tokens]
    tokens = sum(comparison.tokens for comparison in timed)
    source = sum(comparison.source_seconds for comparison in timed)
    own = sum(comparison.file_seconds for comparison in timed)
    return (tokens / source if source else 0.0, tokens / own if own else 0.0)
