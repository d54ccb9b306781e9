"""Tensors without a fault that has a name: like the source's, but not made from it, or not like it at all."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.reference.parts import Model
from phi4conv.verify.recognize_evidence import (
    Case,
    Doubles,
    Evidence,
    Hypothesis,
    TensorView,
    encoding_errors,
    halves_of,
    squares,
    through,
)
from phi4conv.verify.recognize_values import scaled_by, slope, subject

# From this correlation on weights are another state of the source's, not others: fine-tunes stay above 0.9, rows of
# different matrices below 0.3.
ALIKE = 0.6

# Weights in a run of exact values, and how many distinct ones it has at most when they were four bits wide before.
RUN, FOUR_BITS = 32, 16

EXACT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)

# What a factor must exceed to be one, beside 0.3 %: this part of the type's own relative error. An importance matrix
# makes weights smaller, up to 9 % at Q2_K (error 0.30), and never larger, so that the upper bound is a tenth.
SMALLER_BY, LARGER_BY, SMALLEST_STEP = 0.4, 0.04, 0.003


def likeness(case: Case) -> Hypothesis:
    """How much a tensor is like the source's when nothing explains what happened to it."""
    bad = case.trial.where(case.trial.bad)
    rows, verb = subject(case)
    finite = np.isfinite(bad.found).all()
    alike = float(np.median(correlations(bad.found, bad.expected))) if finite else 0.0
    own = float(np.median(encoding_errors(case.view.qtype, bad.expected)))
    error = float(np.median(bad.errors))
    expected = f"relative error {own:.2g}"

    def named(code: str, sentence: str, actual: str) -> Hypothesis:
        return Hypothesis(code, f"{rows} {verb} {sentence}", case.view.found_at, expected=expected, actual=actual)

    if not finite:
        return named("non-finite", "NaN or infinite here and there, and not the source's", "NaN or infinite weights")
    if alike < ALIKE:
        return named("unrelated", f"unrelated to the source's (correlation {alike:.2f})", f"correlation {alike:.2f}")
    actual = f"relative error {error:.2g}"
    if case.view.qtype in EXACT_TYPES and case.view.row_count > 1 and few_values(bad.found):
        return named("requantized", f"made from weights that had been quantized to about four bits: {actual}", actual)
    return named(
        "other-checkpoint",
        f"like the source's (correlation {alike:.4f}) but not made from them: {actual} where "
        f"{case.view.qtype.name} leaves {own:.2g}; another training step, or weights that had been quantized",
        actual,
    )


def correlations(found: Floats, expected: Floats) -> Doubles:
    """The correlation of each row, free of its mean, because norms are near 1 all over: (rows,)."""
    here, there = (
        each.astype(np.float64) - each.astype(np.float64).mean(axis=1, keepdims=True) for each in (found, expected)
    )
    sizes = np.sqrt(squares(here) * squares(there))
    result: Doubles = np.divide(np.einsum("rc,rc->r", here, there), sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    return result


def few_values(weights: Floats) -> bool:
    """Whether nearly all runs of 32 weights have no more than 16 different values."""
    width = weights.shape[1] // RUN * RUN
    runs = np.sort(weights[:, :width].reshape(-1, RUN), axis=1)
    distinct = 1 + (np.diff(runs, axis=1) != 0).sum(axis=1)
    return len(runs) > 0 and float((distinct <= FOUR_BITS).mean()) > 0.95


def overall_factor(view: TensorView, probe: Evidence, found: Model, source: Model) -> Hypothesis | None:
    """A factor too small to show in any row, but not in all of them together; None when there is none."""
    if not probe.expected.any():
        return None
    own = through(view.qtype, probe.expected)
    level = float(np.median(encoding_errors(view.qtype, probe.expected)))
    least, most = 1 - SMALLEST_STEP - SMALLER_BY * level, 1 + SMALLEST_STEP + LARGER_BY * level
    ratios = [
        slope(part.found, part.expected) / slope(own[chosen], part.expected)
        for chosen in halves_of(len(probe.rows))
        if (part := probe.where(chosen)).expected.any()
    ]
    if not (all(ratio > most for ratio in ratios) or all(ratio < least for ratio in ratios)):
        return None
    case = Case(view, found, source, probe, probe, probe.rows, whole=True, complete=False)
    return scaled_by(case, slope(probe.found, probe.expected) / slope(own, probe.expected))
