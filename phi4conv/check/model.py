"""What a check says of a file, as values: findings with their consequences, and what would mend them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from phi4conv.gguf_file.edit import Change


class Severity(enum.IntEnum):
    """How much a finding matters; a file is as good as its worst one."""

    PASS = 0
    SKIP = 1  # could not be looked at
    INFO = 2
    WARN = 3
    FAIL = 4
    ERROR = 5  # a check broke: a programmer must look


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    A root finding is a defect by itself; what follows from it hangs under it as consequences. changes are the
    metadata that mend it, empty where metadata cannot.
    """

    id: str  # of the check: "tokenizer/merges", permanent
    severity: Severity
    code: str  # which of the check's defects: "missing"
    message: str  # what is wrong and what it means for whoever uses the file
    where: str = ""  # a metadata key, a token, a text
    expected: str = ""
    actual: str = ""
    changes: tuple[Change, ...] = ()
    override: str = ""  # an option of llama.cpp's programs that works around the defect today
    consequences: tuple[Finding, ...] = ()
    advice: str = ""  # what to do where `phi4conv fix` does not mend it by itself

    @property
    def remedy(self) -> str:
        """What the user can do about it; nothing where that is not known."""
        if self.advice:
            return self.advice
        return "`phi4conv fix` repairs it" if self.changes and self.severity >= Severity.WARN else ""

    def with_consequences(self, findings: Iterable[Finding]) -> Finding:
        """The finding with more below it."""
        return replace(self, consequences=(*self.consequences, *findings))

    def walk(self) -> Iterator[Finding]:
        """The finding and everything below it."""
        yield self
        for finding in self.consequences:
            yield from finding.walk()


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of the worst root finding; PASS without any.

    >>> worst([Finding("a/b", Severity.WARN, "x", ""), Finding("a/c", Severity.INFO, "y", "")]).name
    'WARN'
    """
    return max((finding.severity for finding in findings), default=Severity.PASS)


def listed(items: Iterable[str], limit: int = 3) -> str:
    """The first items and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    items = list(items)
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"
