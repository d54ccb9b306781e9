"""Findings for people: each defect with what it means, what was expected and found, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phi4conv.cli.page import Page

if TYPE_CHECKING:
    from phi4conv.check.comparison import Comparison
    from phi4conv.check.model import Finding

COLOURS = {"FAIL": "red", "ERROR": "red", "WARN": "yellow"}


def add_findings(page: Page, findings: Sequence[Finding]) -> None:
    """Every root finding, the worst first."""
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        add_finding(page, finding)
        page.add()


def add_finding(page: Page, finding: Finding) -> None:
    """One finding, its details and its consequences."""
    name = finding.severity.name
    page.add(f"{name}  {finding.id} ({finding.code})", bold=True, fg=COLOURS.get(name))
    page.add(f"  {finding.message}")
    details = {
        "where": finding.where,
        "expected": finding.expected,
        "found": finding.actual,
        "llama.cpp": finding.override,
    }
    for label, text in details.items():
        if text:
            page.add(f"    {label + ':':<11}{text}")
    for consequence in finding.consequences:
        page.add(f"    so:        {consequence.message} ({consequence.id})")
        if consequence.where and (consequence.expected or consequence.actual):
            page.add(f"                 {consequence.where}")
            page.add(f"                 expected {consequence.expected}")
            page.add(f"                 found    {consequence.actual}")


def comparison_row(comparison: Comparison) -> tuple[str, str]:
    """One group's figures as a row."""
    parts = [f"{comparison.same:,} of {comparison.texts:,} alike"]
    parts += [f"{count:,} {name} (known)" for name, count in sorted(comparison.known.items())]
    if comparison.wrong:
        parts.append(f"{comparison.wrong:,} WRONG")
    return comparison.name, ", ".join(parts)
