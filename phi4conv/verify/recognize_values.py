"""Changes of the weights themselves: zeros, constants, factors, a norm's one, columns that moved, a lower type.

Every function here takes a case and yields hypotheses, the likelier ones first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.quant import CODECS
from phi4conv.rows import RowSource
from phi4conv.verify.recognize_evidence import (
    Case,
    Doubles,
    Evidence,
    Hypothesis,
    Indices,
    changed_rows,
    encoding_errors,
    on_bad_rows,
    rows_at,
    squares,
    through,
)

# Fewer rows cannot tell one factor for each column from chance.
ROWS_FOR_COLUMN_FACTORS = 16

# A factor this near -1 is a change of sign that quantization blurs.
SIGN_TOLERANCE = 0.06

# Which norm scales what a matrix takes in.
NORM_AHEAD = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "output": "output_norm",
}

# From coarse to fine, with the relative error that each leaves on normal weights: those that tools store weights in.
COARSER_TYPES = (
    GGMLQuantizationType.Q2_K,  # 0.30
    GGMLQuantizationType.Q3_K,  # 0.15
    GGMLQuantizationType.Q4_0,  # 0.086
    GGMLQuantizationType.Q4_1,  # 0.078
    GGMLQuantizationType.Q4_K,  # 0.071
    GGMLQuantizationType.Q5_0,  # 0.043
    GGMLQuantizationType.Q5_1,  # 0.038
    GGMLQuantizationType.Q5_K,  # 0.036
    GGMLQuantizationType.Q6_K,  # 0.018
    GGMLQuantizationType.Q8_0,  # 0.005
)


def subject(case: Case) -> tuple[str, str]:
    """The rows that are wrong, and the verb that follows them: ("the q and k rows", "are")."""
    rows = case.bad_rows
    if case.whole:
        return "all weights", "are"
    segments = case.bad_segments
    if len(case.view.segments) > 1 and (
        not case.complete or len(rows) >= 0.9 * sum(each.stop - each.start for each in segments)
    ):
        return f"the {' and '.join(each.label for each in segments)} rows", "are"
    if len(rows) == 1:
        return f"row {rows[0]}", "is"
    if rows[-1] - rows[0] < len(rows):
        return f"rows {rows[0]} to {rows[-1]}", "are"
    if not case.complete:
        return f"rows between {rows[0]} and {rows[-1]}", "are"
    return f"{len(rows):,} rows between {rows[0]} and {rows[-1]}", "are"


def blanks(case: Case) -> Iterator[Hypothesis]:
    """Nothing but zeros, or one value everywhere."""
    rows, verb = subject(case)
    found = case.trial.found[case.trial.bad]
    value = float(found.flat[0])
    if not (np.isfinite(value) and (found == found.flat[0]).all()):
        return

    sentence = f"{rows} {verb} zero" if value == 0 else f"{rows} {verb} {value:.6g}, one constant"
    weights = changed_rows(case, lambda weights: np.full_like(weights, value))
    yield Hypothesis("all-zero" if value == 0 else "constant", sentence, weights, actual=f"{value:.6g} everywhere")


def norm_offsets(case: Case) -> Iterator[Hypothesis]:
    """1 added to a norm's weights, or taken away: Gemma stores them less 1."""
    if not case.view.segments[0].part.endswith("norm"):
        return
    for step, words in ((np.float32(1), "1 was added to"), (np.float32(-1), "1 was taken away from")):
        expected = float(case.trial.expected.mean())
        yield Hypothesis(
            "norm-offset",
            f"{words} all weights, as for models that scale by 1 + weight",
            changed_rows(case, partial(np.add, step)),
            expected=f"{expected:.3g} on average",
            actual=f"{float(case.trial.found.mean()):.3g} on average",
        )


def slope(found: Floats, expected: Floats) -> float:
    """The factor f that makes f * expected nearest to found; 0 where expected is zero."""
    wide = expected.astype(np.float64)
    power = float((wide * wide).sum())
    return float((found.astype(np.float64) * wide).sum()) / power if power else 0.0


def own_slope(qtype: GGMLQuantizationType, expected: Floats) -> float:
    """The factor that encoding in the type brings by itself: 0.98 for Q2_K, 1.00 for most."""
    return slope(through(qtype, expected), expected) or 1.0


def factors(case: Case) -> Iterator[Hypothesis]:
    """All bad rows times one factor, -1 first."""
    bad = case.trial.where(case.trial.bad)
    if not np.isfinite(bad.found).all():
        return
    factor = slope(bad.found, bad.expected) / own_slope(case.view.qtype, bad.expected)
    if not 1e-6 < abs(factor) < 1e6:
        return
    yield scaled_by(case, factor)


def scaled_by(case: Case, factor: float) -> Hypothesis:
    """The bad rows times a factor."""
    rows, verb = subject(case)
    if abs(factor + 1) < SIGN_TOLERANCE:
        return Hypothesis(
            "negated",
            f"{rows} {verb} negated",
            changed_rows(case, np.negative),
            expected="the source's signs",
            actual="the opposite signs",
        )
    step = np.float32(factor)
    return Hypothesis(
        "scaled",
        f"{rows} {verb} scaled by {factor:.3g}",
        changed_rows(case, lambda weights: weights * step),
        expected="factor 1",
        actual=f"factor {factor:.3g}",
    )


def row_factors(case: Case) -> Iterator[Hypothesis]:
    """Every bad row times a factor of its own."""
    view = case.view
    if case.trial.bad.sum() < 2 or not np.isfinite(case.trial.found).all():
        return

    def weights(rows: Indices) -> Floats:
        expected, found = rows_at(view.expected, rows), rows_at(view.found, rows)
        powers = squares(expected)
        products = np.einsum("rc,rc->r", found.astype(np.float64), expected.astype(np.float64))
        steps = np.divide(products, powers, out=np.ones(len(rows)), where=powers > 0)
        scaled: Floats = (expected * steps[:, None]).astype(np.float32)
        return scaled

    subjects, verb = subject(case)
    yield Hypothesis(
        "rows-scaled", f"{subjects} {verb} scaled, each by a factor of its own", on_bad_rows(case, weights)
    )


def column_factors(case: Case) -> Iterator[Hypothesis]:
    """Every column times a factor of its own: that of the norm ahead, when it was folded into the matrix, or any."""
    view = case.view
    bad = case.trial.where(case.trial.bad)
    if len(bad.rows) < ROWS_FOR_COLUMN_FACTORS or not np.isfinite(bad.found).all():
        return
    tensor, role = view.segments[0].part, view.parts[0].name
    norm_name = role.removesuffix(tensor) + NORM_AHEAD.get(tensor, "")
    norm = case.source.parts.get(norm_name)
    if norm is not None and norm.shape == (view.width,):
        weights = norm.rows.rows(0, 1)[0]
        yield Hypothesis(
            "norm-folded",
            f"each column is multiplied by {norm_name}.weight, as when a norm is folded into the matrix behind it",
            changed_rows(case, lambda rows: times(rows, weights)),
        )
    steps = column_steps(bad)
    yield Hypothesis(
        "columns-scaled",
        "each column is multiplied by a factor of its own, as tools do that balance weights and activations",
        changed_rows(case, lambda weights: times(weights, steps)),
    )


def times(weights: Floats, steps: Doubles | Floats) -> Floats:
    """Each column times its factor."""
    product: Floats = (weights * steps).astype(np.float32)
    return product


def column_steps(evidence: Evidence) -> Doubles:
    """The factor of each column, (width,); 1 where the source has only zeros."""
    found, expected = evidence.found.astype(np.float64), evidence.expected.astype(np.float64)
    products = np.einsum("rc,rc->c", found, expected)
    powers = np.einsum("rc,rc->c", expected, expected)
    steps: Doubles = np.divide(products, powers, out=np.ones_like(powers), where=powers > 0)
    return steps


def moved_columns(case: Case) -> Iterator[Hypothesis]:
    """Every row shifted by the same number of columns: round its own end, or out into zeros."""
    bad = case.trial.where(case.trial.bad)
    if not np.isfinite(bad.found).all():
        return
    view = case.view
    # The circular correlation of both sides is highest at the shift; mean-free, because norms are near 1 all over.
    found, expected = (each - each.mean(axis=1, keepdims=True) for each in (bad.found, bad.expected))
    spectrum = np.fft.rfft(found) * np.conj(np.fft.rfft(expected))
    width = view.width
    shift = int(np.fft.irfft(spectrum, n=width).sum(axis=0).argmax())
    shift -= width if shift > width // 2 else 0
    if shift == 0:
        return
    units = "weights" if view.row_count == 1 else "columns"
    moved = f"{abs(shift)} {units if abs(shift) > 1 else units[:-1]} to the {'right' if shift > 0 else 'left'}"
    kinds: tuple[tuple[str, str, Callable[[RowSource, int, Indices], Floats]], ...] = (
        ("columns-shifted", f"its {units} are shifted cyclically, {moved}", rolled),
        ("columns-shifted", f"its {units} are shifted, {moved}, with zeros in their place", padded),
    )
    for code, sentence, change in kinds:
        weights = on_bad_rows(case, partial(change, view.expected, shift))
        yield Hypothesis(code, sentence, weights)


def rolled(source: RowSource, shift: int, rows: Indices) -> Floats:
    """Rows with their columns moved to the right, round the end."""
    return np.roll(rows_at(source, rows), shift, axis=1)


def padded(source: RowSource, shift: int, rows: Indices) -> Floats:
    """Rows with their columns moved to the right, zeros where they came from."""
    weights = rolled(source, shift, rows)
    if shift > 0:
        weights[:, :shift] = 0
    else:
        weights[:, shift:] = 0
    return weights


def coarser_types(case: Case) -> Iterator[Hypothesis]:
    """Weights that had been stored in a lower type before, without an importance matrix."""
    view = case.view
    bad = case.trial.where(case.trial.bad)
    if view.row_count == 1 or not np.isfinite(bad.found).all():
        return
    own = float(np.median(encoding_errors(view.qtype, bad.expected)))
    error = float(np.median(bad.errors))
    for qtype in COARSER_TYPES:
        if view.width % CODECS[qtype].block_weights or qtype == view.qtype:
            continue
        rows, verb = subject(case)
        yield Hypothesis(
            "requantized",
            f"{rows} {verb} made from weights that had been {qtype.name}: "
            f"relative error {error:.2g} where {view.qtype.name} leaves {own:.2g}",
            changed_rows(case, partial(through, qtype)),
            expected=f"relative error {own:.2g}",
            actual=f"relative error {error:.2g}",
        )


VALUE_CHANGES: tuple[Callable[[Case], Iterator[Hypothesis]], ...] = (
    blanks,
    norm_offsets,
    factors,
    coarser_types,
)
REMAINING_VALUE_CHANGES: tuple[Callable[[Case], Iterator[Hypothesis]], ...] = (
    moved_columns,
    row_factors,
    column_factors,
)
