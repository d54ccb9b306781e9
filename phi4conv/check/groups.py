"""A group of texts through both sides, and what each wrong one is due to."""

from __future__ import annotations

from collections.abc import Sequence

from phi4conv.check.attribution import Attribution
from phi4conv.check.comparison import Comparison, FileSide, Mismatch, compare
from phi4conv.check.mismatch import mismatch_finding
from phi4conv.check.model import Finding
from phi4conv.check.samples import SampleGroup


def compare_group(group: SampleGroup, attribution: Attribution, first: int) -> Comparison:
    """Compare, then mend defect by defect and see which texts come right.

    Where more texts were wrong than are kept, those kept are laid to their defects, and all are tried again at the
    end: with everything mended each has to come right.
    """
    side = attribution.side(first)
    outcome = compare(group.name, group.samples(), attribution.source, side)
    left = outcome.mismatches
    for number in attribution.loadable(first + 1) if left else ():
        later = attribution.side(number)
        tried = [(mismatch, later.recheck(mismatch)) for mismatch in left]
        if fixed := [mismatch for mismatch, came_right in tried if came_right]:
            attribution.blame(number, texts_finding(group, fixed, outcome, side))
            left = [mismatch for mismatch, came_right in tried if not came_right]
    if outcome.wrong > len(outcome.mismatches) and not left:
        left = compare(group.name, group.samples(), attribution.source, attribution.side(attribution.last)).mismatches
    if left:
        attribution.blame(0, texts_finding(group, left, outcome, side))
    return outcome


def texts_finding(group: SampleGroup, wrong: Sequence[Mismatch], outcome: Comparison, side: FileSide) -> Finding:
    """Texts of one group that become other tokens, shown by the simplest of them.

    Of texts that were not kept nobody knows which defect they are due to: what is counted is then the least.
    """
    shown = min(wrong, key=lambda mismatch: (bool(mismatch.reason), len(mismatch.item.text)))
    least = "at least " * (outcome.wrong > len(outcome.mismatches))
    message = f"{least}{len(wrong):,} of {outcome.texts:,} {group.name} become other tokens"
    return mismatch_finding(group.id, message, shown, side)
