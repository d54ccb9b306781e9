"""From findings to defects: which finding is a fault of its own, and which goes away when another one is mended.

The first finding that metadata can mend is mended, in memory, and the checks run again. What has gone is a consequence
of it; what is left is looked at in the same way. So nothing is taken for a consequence on a hunch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from phi4conv.check import container, roles, template, value_types, vocabulary
from phi4conv.check.case import Case
from phi4conv.check.model import Finding, Severity
from phi4conv.gguf_file.edit import Change

CHECKS = (*container.CHECKS, *value_types.CHECKS, *vocabulary.CHECKS, *roles.CHECKS, *template.CHECKS)

# A finding below this is for information, and not to be mended.
WORTH_MENDING = Severity.WARN


@dataclass(frozen=True)
class Diagnosis:
    """The defects of a file.

    Attributes:
        roots: Each defect with its consequences, in the order in which they are mended.
        cases: The file as it is, and then after each root with changes was mended as well.
    """

    roots: tuple[Finding, ...]
    cases: tuple[Case, ...]

    @property
    def mended(self) -> Case:
        """The file with every defect mended that metadata can mend."""
        return self.cases[-1]

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """All that was changed, each key once."""
        return tuple({change.key: change for root in self.mending for change in root.changes}.values())

    @property
    def mending(self) -> tuple[Finding, ...]:
        """The roots that were mended: one for each case but the first."""
        return tuple(root for root in self.roots if is_mendable(root))


def diagnose(case: Case) -> Diagnosis:
    """Find what is wrong with the tokenizer's metadata."""
    cases = [case]
    roots: list[Finding] = []
    left = run_checks(case)
    while (first := next(filter(is_mendable, left), None)) is not None:
        mended = cases[-1].after(first.changes)
        after = run_checks(mended)
        still = {(finding.id, finding.where) for finding in after}
        if (first.id, first.where) in still:
            raise RuntimeError(f"{first.id} is still found after its own repair")
        gone = [finding for finding in left if (finding.id, finding.where) not in still and finding is not first]
        roots.append(first.with_consequences(gone))
        cases.append(mended)
        left = after
    return Diagnosis((*roots, *left), tuple(cases))


def is_mendable(finding: Finding) -> bool:
    """Whether a finding is bad enough to be mended, and can be."""
    return bool(finding.changes) and finding.severity >= WORTH_MENDING


def run_checks(case: Case) -> list[Finding]:
    """What every check finds, those first that others may follow from."""
    return [finding for check in CHECKS for finding in check(case)]
