"""What happened to one tensor that does not correspond to the source, by name.

Rows of the file are held against the source's rows as each known fault would have arranged or changed them: first on
some rows, then on others. The registries are ARRANGEMENTS, TENSOR_CHANGES, VALUE_CHANGES and so on; a fault that
touches a few rows only is looked for in the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from phi4conv.reference.parts import Model
from phi4conv.verify.recognize_arrangements import ARRANGEMENTS
from phi4conv.verify.recognize_bytes import mendings, mends
from phi4conv.verify.recognize_damage import Scan, damage, scan
from phi4conv.verify.recognize_evidence import (
    Case,
    Evidence,
    Hypothesis,
    Indices,
    TensorView,
    explains,
    gather,
    spread,
    tensor_view,
)
from phi4conv.verify.recognize_likeness import likeness, overall_factor
from phi4conv.verify.recognize_rows import row_patterns
from phi4conv.verify.recognize_shapes import other_shape
from phi4conv.verify.recognize_tensors import TENSOR_CHANGES, transposed
from phi4conv.verify.recognize_values import REMAINING_VALUE_CHANGES, VALUE_CHANGES

# Rows that are looked at first.
PROBED_ROWS = 192

# Bad and good rows on which a hypothesis is tried; as many others prove it.
TRIED_BAD, TRIED_GOOD = 32, 16

# From this share of bad rows on all rows are taken to be: some rows of a permuted matrix stay in their place.
WHOLE_SHARE = 0.9

# Bad rows no more than this share of whose pieces is bad are damaged, not exchanged, moved or scaled.
PARTLY_BAD = 0.5

FAMILIES: tuple[Callable[[Case], Iterator[Hypothesis]], ...] = (
    *VALUE_CHANGES,
    *ARRANGEMENTS,
    *TENSOR_CHANGES,
    *REMAINING_VALUE_CHANGES,
    row_patterns,
    transposed,
)


@dataclass(frozen=True)
class Recognition:
    """What happened to a tensor.

    Attributes:
        code: The fault's kebab-case name: "gate-up-swapped".
        sentence: What happened, to follow the tensor's name and a colon: "gate and up halves are swapped".
        expected: What should be there, in few words; empty where there is nothing to show.
        actual: What is there instead.
        other_tensor: The tensor of the file whose weights these are.
        rows: First and last row of the file's tensor that are touched, in the checkpoint's order; None for all.
        share: The part of the tensor's rows that is touched, from 0 to 1; an estimate where rows were sampled.
        tensors: The tensors to which it happened.
        words: How they are called together, where that is not the first one and how many more: "layers 3 and 5".
    """

    code: str
    sentence: str
    expected: str = ""
    actual: str = ""
    other_tensor: str | None = None
    rows: tuple[int, int] | None = None
    share: float = 1.0
    tensors: tuple[str, ...] = ()
    words: str = ""

    @property
    def subject(self) -> str:
        """To what it happened: "blk.0.attn_qkv.weight and 39 more"."""
        more = len(self.tensors) - 1
        return self.words or (self.tensors[0] if not more else f"{self.tensors[0]} and {more} more")


def recognize(tensor: str, found: Model, source: Model, *, thorough: bool = True) -> Recognition | None:
    """What happened to a tensor of the file; None when its weights are the source's, as far as its type can tell.

    Args:
        tensor: Its name in the file, "blk.3.ffn_up.weight".
        found: The file.
        source: What the file should have been made from.
        thorough: Also try what takes a reading of the whole tensor: rows in any order, transposition.

    Raises:
        FormatError, CheckpointError: A side cannot be read.
    """
    view = tensor_view(tensor, found, source)
    # Damaged weights are anything a float can be.
    with np.errstate(invalid="ignore", over="ignore"):
        recognition = None if view is None else recognize_view(view, found, source, thorough=thorough)
    return None if recognition is None else replace(recognition, tensors=(tensor,))


def recognize_view(view: TensorView, found: Model, source: Model, *, thorough: bool) -> Recognition | None:
    """As recognize, for a tensor that both sides have."""
    if view.found.shape != view.expected.shape:
        return named(other_shape(view))
    probe = gather(view, spread(view.row_count, PROBED_ROWS))
    case, seen = opened(view, found, source, probe, thorough=thorough)
    if case is None:
        factor = overall_factor(view, probe, found, source)
        return None if factor is None else named(factor)
    if seen is None or seen.share > PARTLY_BAD:
        explained = explanation(case)
        if explained is not None:
            return touched(case, explained)
    seen = seen or scan(view)
    damaged = damage(view, seen)
    if damaged is not None:
        recognition = Recognition(damaged.code, damaged.sentence, damaged.expected, damaged.actual)
        return touched(replace(case, bad_rows=seen.rows, complete=True, whole=False), recognition)
    return touched(case, named(likeness(case)))


def explanation(case: Case) -> Recognition | None:
    """What has to be undone to the bytes, or the first hypothesis that explains the case."""
    mending = next((each for each in mendings(case) if mends(case, each)), None)
    if mending is not None:
        return Recognition(mending.code, mending.sentence)
    hypothesis = next((each for each in hypotheses(case) if explains(case, each)), None)
    return None if hypothesis is None else named(hypothesis)


def hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Every hypothesis of every family."""
    for family in FAMILIES:
        yield from family(case)


def opened(
    view: TensorView, found: Model, source: Model, probe: Evidence, *, thorough: bool
) -> tuple[Case | None, Scan | None]:
    """The case that the probe makes, and the scan if one was needed to know the bad rows; None for a good tensor."""
    share = float(probe.bad.mean())
    if share >= WHOLE_SHARE or (share > 0 and is_whole_parts(view, probe)):
        bad = probe.rows[probe.bad]
        trial, proof = halves(probe)
        whole = share >= WHOLE_SHARE
        complete = view.row_count == len(probe.rows)
        return Case(view, found, source, trial, proof, bad, whole, complete, thorough), None
    seen = scan(view)
    if not len(seen.rows):
        return None, seen
    chosen = spread(len(seen.rows), 2 * TRIED_BAD)
    good = np.setdiff1d(probe.rows, seen.rows)
    evidence = gather(view, np.union1d(seen.rows[chosen], good))
    # The scan looked at every block, and so knows of bad ones that hide in a row.
    evidence = replace(evidence, bad=np.isin(evidence.rows, seen.rows))
    trial, proof = halves(evidence)
    whole = len(seen.rows) >= WHOLE_SHARE * view.row_count
    return Case(view, found, source, trial, proof, seen.rows, whole, True, thorough), seen


def is_whole_parts(view: TensorView, probe: Evidence) -> bool:
    """Whether every part of a fused tensor is either bad (nearly) throughout or good throughout."""
    shares = [
        float(probe.bad[(probe.rows >= each.start) & (probe.rows < each.stop)].mean())
        for each in view.segments
        if ((probe.rows >= each.start) & (probe.rows < each.stop)).any()
    ]
    return len(shares) > 1 and all(share == 0 or share >= WHOLE_SHARE for share in shares)


def halves(evidence: Evidence) -> tuple[Evidence, Evidence]:
    """Rows for the trial, and others for the proof; the same ones where there are few."""
    bad, good = np.flatnonzero(evidence.bad), np.flatnonzero(~evidence.bad)
    trial = np.concatenate([first(bad, TRIED_BAD, 0), first(good, TRIED_GOOD, 0)])
    proof = np.concatenate([first(bad, TRIED_BAD, 1), first(good, TRIED_GOOD, 1)])
    return evidence.where(np.sort(trial)), evidence.where(np.sort(proof))


def first(places: Indices, count: int, turn: int) -> Indices:
    """Every other place, or all of a single one, up to a count and spread over all of them."""
    alternate = places[turn::2] if len(places) > 1 else places
    return alternate[spread(len(alternate), count - 4)] if len(alternate) else alternate


def named(hypothesis: Hypothesis) -> Recognition:
    """A hypothesis that holds, as what users see."""
    return Recognition(
        hypothesis.code, hypothesis.sentence, hypothesis.expected, hypothesis.actual, hypothesis.other_tensor
    )


def touched(case: Case, recognition: Recognition) -> Recognition:
    """The recognition with the rows and the share of the tensor that the case says."""
    count = case.view.row_count
    if case.whole:
        return recognition
    if case.complete:
        rows = (int(case.bad_rows[0]), int(case.bad_rows[-1]))
        return replace(recognition, rows=rows, share=len(case.bad_rows) / count)
    segments = case.bad_segments
    rows = (segments[0].start, segments[-1].stop - 1)
    return replace(recognition, rows=rows, share=sum(each.stop - each.start for each in segments) / count)
