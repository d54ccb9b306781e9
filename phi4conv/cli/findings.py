"""Findings and comparisons for people: what each defect means and what follows from it, and what came out alike."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from phi4conv.cli.page import Page
from phi4conv.cli.support import printable

if TYPE_CHECKING:
    from phi4conv.check.comparison import Comparison
    from phi4conv.check.model import Finding

COLOURS = {"FAIL": "red", "ERROR": "red", "WARN": "yellow"}

# Longer lines are hard to read, however wide the terminal is.
READABLE_WIDTH = 100

# A token or a name can have megabytes; --json has all of it.
LONGEST_DETAIL = 400

KNOWN_EXPLAINED = (
    "known: Hugging Face and llama.cpp differ there on a right file, too, and a GGUF cannot say it; "
    "it is no fault of this one"
)


def add_wrapped(page: Page, text: str, *, first: str = "", indent: str = "") -> None:
    """Add a text: on a terminal in lines that end with a word, whole where there is none.

    first stands before the first line, indent before the others.
    """
    shown = printable(text if len(text) <= LONGEST_DETAIL else f"{text[:LONGEST_DETAIL]}…")
    if page.width is None:
        page.add(first + shown)
        return
    width = min(page.width, READABLE_WIDTH)
    lines = textwrap.wrap(
        shown, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    for line in lines or [first]:
        page.add(line)


def add_findings(page: Page, findings: Sequence[Finding]) -> None:
    """Every root finding, the worst first."""
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        add_finding(page, finding)
        page.add()


def add_finding(page: Page, finding: Finding) -> None:
    """One finding, its details and its consequences."""
    name = finding.severity.name
    page.add(f"{name}  {finding.id} ({finding.code})", bold=True, fg=COLOURS.get(name))
    add_wrapped(page, finding.message, first="  ", indent="  ")
    details = {
        "where:": finding.where,
        "expected:": finding.expected,
        "found:": finding.actual,
        "remedy:": finding.remedy,
        "llama.cpp:": finding.override,
    }
    for label, text in details.items():
        if text:
            add_wrapped(page, text, first=f"    {label:<11}", indent=" " * 15)
    if finding.consequences:
        page.add("    it follows that")
    for consequence in finding.consequences:
        add_consequence(page, consequence)


def add_consequence(page: Page, finding: Finding) -> None:
    """One line; of texts that come out wrong also the simplest. What else the metadata say is in --json."""
    add_wrapped(page, f"{finding.message} ({finding.id})", first="    - ", indent="      ")
    if finding.changes or not (finding.expected and finding.actual):
        return
    rows = {"": finding.where, "expected ": finding.expected, "found    ": finding.actual}
    for label, text in rows.items():
        if text:
            add_wrapped(page, text, first=f"        {label}", indent=" " * 17)


def add_comparisons(page: Page, comparisons: Sequence[Comparison]) -> None:
    """What was tried on both sides, as a table, and the known differences among it."""
    if not comparisons:
        return
    rows: list[tuple[str, ...]] = [("compared", "tried", "alike", "known", "wrong")]
    for each in comparisons:
        counts = (each.texts, each.same, each.known.total(), each.wrong)
        rows.append((f"  {each.name}", *(f"{count:,}" for count in counts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        page.add("  ".join([name.ljust(widths[0]), *aligned]), **({} if name.startswith(" ") else {"bold": True}))
    known: Counter[str] = sum((each.known for each in comparisons), Counter())
    if known:
        add_wrapped(page, KNOWN_EXPLAINED, first="  ", indent="  ")
        for name, count in known.most_common():
            page.add(f"    {count:,} {name}")
    page.add()
